//! Recovery from arbitrary bytes: it ends, without a panic.

use super::harness::*;
use crate::storage::simdisk::SimDisk;
use crate::storage::wal::record::{self, Checkpoint, Kind};
use crate::storage::wal::recover::replay_bytes;
use crate::storage::wal::{fuzz_recover, segment};
use bytes::Bytes;
use proptest::prelude::*;
use std::path::Path;

/// The segments of a sound log, one after the other.
fn sound_log() -> Vec<u8> {
    let mut driver = Driver::open(&SimDisk::new(), 1024, None).unwrap();
    driver.run(&mixed_calls()[..16]);
    driver.wal.abandon();
    let names = segment_files(&driver.disk);
    assert!(names.len() > 1);
    names.iter().flat_map(|name| driver.disk.contents(&Path::new(DIR).join(name)).unwrap()).collect()
}

#[test]
fn signed_records_are_replayed() {
    let records = [(Kind::Entry, 4, 0, 9), (Kind::Vote, 0, 0, 1), (Kind::Entry, 5, 0, 0), (Kind::Truncate, 5, 0, 0)];
    let replay = replay_bytes(&signed_segment(7, &Checkpoint::default(), &records)).unwrap();
    assert_eq!(replay.index.live(), Some((4, 5)));
    assert_eq!(replay.vote, Some(Bytes::from_static(b"x")));
    assert!(replay_bytes(&signed_segment(7, &Checkpoint::default(), &[records[0], records[0]])).is_err());
    assert!(replay_bytes(&sound_log()).is_ok());
}

#[test]
fn a_sound_log_and_every_prefix_of_it() {
    let log = sound_log();
    for end in 0..=log.len() {
        fuzz_recover(&log[..end]);
    }
}

/// Any index, the extremes above all.
fn index() -> impl Strategy<Value = u64> {
    prop_oneof![0..6_u64, (0..4_u64).prop_map(|below| u64::MAX - below), any::<u64>()]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Entry),
        1 => prop_oneof![Just(Kind::Vote), Just(Kind::Committed), Just(Kind::Mark), Just(Kind::Checkpoint)],
        2 => Just(Kind::Truncate),
        2 => Just(Kind::Purge),
    ]
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (prop::option::of(index()), prop::option::of((index(), index()))).prop_map(|(purged, live)| Checkpoint {
        vote: None,
        committed: Some(Bytes::from_static(b"c")),
        purged: purged.map(|index| (index, Bytes::from_static(b"p"))),
        live,
    })
}

/// A segment whose checksums are all right and whose content may be anything.
fn signed_segment(number: u32, checkpoint: &Checkpoint, records: &[(Kind, u64, u32, usize)]) -> Vec<u8> {
    let checkpoint = checkpoint.encode();
    let payloads = records.iter().map(|(.., len)| *len).chain([checkpoint.len()]);
    let allocated = payloads.map(record::footprint).sum::<usize>() + segment::HEADER_BYTES;
    let allocated = u32::try_from(allocated).unwrap();
    let header = segment::Header { segment: number, allocated, previous_end: 0, previous_crc: 0 };
    let (bytes, seed) = header.encode();
    let mut out = bytes.to_vec();
    let mut push = |kind, index, group: u32, payload: &[u8]| {
        let offset = u32::try_from(out.len()).unwrap();
        let (len, payload_crc) = (u32::try_from(payload.len()).unwrap(), record::payload_crc(payload));
        let group = group.min(offset);
        record::push(&mut out, seed, offset, &record::Header { kind, len, index, group, payload_crc, crc: 0 }, payload);
    };
    push(Kind::Checkpoint, 0, 64, &checkpoint);
    for (kind, index, group, len) in records {
        push(*kind, *index, *group, &vec![b'x'; *len]);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        fuzz_recover(&bytes);
    }

    #[test]
    fn mutated_logs(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..9_usize), 1..20)) {
        let mut log = sound_log();
        for (at, byte, len) in edits {
            let at = at.index(log.len());
            let end = (at + len).min(log.len());
            log[at..end].fill(byte);
        }
        fuzz_recover(&log);
    }

    #[test]
    fn signed_nonsense(
        number in prop_oneof![Just(1_u32), Just(u32::MAX), any::<u32>()],
        checkpoint in checkpoint(),
        records in prop::collection::vec((kind(), index(), any::<u32>(), 0..40_usize), 0..30),
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut bytes = signed_segment(number, &checkpoint, &records);
        bytes.extend(tail);
        fuzz_recover(&bytes);
    }
}
