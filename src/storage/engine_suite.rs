//! What every engine must do, run against each implementation.

use super::engine::Engine;
use bytes::Bytes;

fn entry(key: &'static [u8], value: &'static [u8]) -> (Bytes, Bytes) {
    (Bytes::from_static(key), Bytes::from_static(value))
}

/// `engine` must be empty.
pub(crate) fn run(engine: &dyn Engine) {
    assert_eq!(engine.get(b"a").unwrap(), None);

    engine.commit(vec![entry(b"b", b"1"), entry(b"d", b"2"), entry(b"f", b""), entry(b"\xff\xff", b"4")]).unwrap();
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.get(b"f").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(engine.get(b"c").unwrap(), None);

    let before = engine.disk_bytes().unwrap();
    engine.commit(vec![entry(b"b", b"new"), entry(b"x", b"5")]).unwrap();
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(engine.get(b"d").unwrap().as_deref(), Some(&b"2"[..]));
    assert!(engine.disk_bytes().unwrap() >= before);

    // Values on both sides of sled's blob threshold, and many of them.
    let large = Bytes::from(vec![7u8; 1 << 20]);
    let medium = Bytes::from(vec![9u8; 14 << 10]);
    let mut batch = vec![(Bytes::from_static(b"large"), large.clone())];
    batch.extend((0..300u32).map(|n| (key(n), medium.clone())));
    engine.commit(batch).unwrap();
    assert_eq!(engine.get(b"large").unwrap(), Some(large));
    assert!((0..300).all(|n| engine.get(&key(n)).unwrap() == Some(medium.clone())));
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"new"[..]));
}

fn key(n: u32) -> Bytes {
    let mut key = b"m/".to_vec();
    key.extend_from_slice(&n.to_be_bytes());
    key.into()
}
