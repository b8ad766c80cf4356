//! What every engine must do, run against each implementation.

use super::engine::Engine;
use bytes::Bytes;

fn put(key: &'static [u8], value: &'static [u8]) -> (Bytes, Option<Bytes>) {
    (Bytes::from_static(key), Some(Bytes::from_static(value)))
}

fn entry(key: &'static [u8], value: &'static [u8]) -> (Bytes, Bytes) {
    (Bytes::from_static(key), Bytes::from_static(value))
}

/// `engine` must be empty.
pub(crate) fn run(engine: &dyn Engine) {
    assert_eq!(engine.get(b"a").unwrap(), None);
    assert_eq!(engine.floor(b"\xff").unwrap(), None);
    assert_eq!(engine.scan(b"", b"\xff", 9).unwrap(), vec![]);

    engine.commit(vec![put(b"b", b"1"), put(b"d", b"2"), put(b"f", b""), put(b"\xff\xff", b"4")]).unwrap();
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.get(b"f").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(engine.get(b"c").unwrap(), None);

    assert_eq!(engine.floor(b"a").unwrap(), None);
    assert_eq!(engine.floor(b"b").unwrap(), Some(entry(b"b", b"1")));
    assert_eq!(engine.floor(b"c").unwrap(), Some(entry(b"b", b"1")));
    assert_eq!(engine.floor(b"e\xff").unwrap(), Some(entry(b"d", b"2")));
    assert_eq!(engine.floor(b"\xff\xff\xff").unwrap(), Some(entry(b"\xff\xff", b"4")));

    assert_eq!(engine.scan(b"b", b"f", 9).unwrap(), vec![entry(b"b", b"1"), entry(b"d", b"2")]);
    assert_eq!(engine.scan(b"c", b"\xff", 1).unwrap(), vec![entry(b"d", b"2")]);
    assert_eq!(engine.scan(b"f", b"f", 9).unwrap(), vec![]);
    assert_eq!(engine.scan(b"f", b"b", 9).unwrap(), vec![]);
    assert_eq!(engine.scan(b"", b"\xff", 0).unwrap(), vec![]);

    let before = engine.disk_bytes().unwrap();
    engine.commit(vec![(Bytes::from_static(b"d"), None), put(b"b", b"new"), (Bytes::from_static(b"x"), None)]).unwrap();
    assert_eq!(engine.get(b"d").unwrap(), None);
    assert_eq!(engine.floor(b"e").unwrap(), Some(entry(b"b", b"new")));
    assert!(engine.disk_bytes().unwrap() >= before);

    // Values on both sides of sled's blob threshold, and many of them.
    let large = Bytes::from(vec![7u8; 1 << 20]);
    let medium = Bytes::from(vec![9u8; 14 << 10]);
    let mut batch = vec![(Bytes::from_static(b"large"), Some(large.clone()))];
    batch.extend((0..300u32).map(|n| (key(n), Some(medium.clone()))));
    engine.commit(batch).unwrap();
    assert_eq!(engine.get(b"large").unwrap(), Some(large));
    assert_eq!(engine.get(&key(299)).unwrap(), Some(medium));
    assert_eq!(engine.scan(&key(0), &key(300), 1000).unwrap().len(), 300);
    engine.commit((0..300u32).map(|n| (key(n), None)).collect()).unwrap();
    assert_eq!(engine.scan(&key(0), &key(300), 1000).unwrap().len(), 0);
    assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b"new"[..]));
}

fn key(n: u32) -> Bytes {
    let mut key = b"m/".to_vec();
    key.extend_from_slice(&n.to_be_bytes());
    key.into()
}
