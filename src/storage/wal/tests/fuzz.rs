//! Recovery from arbitrary bytes: it ends, without a panic.

use super::harness::*;
use crate::storage::simdisk::SimDisk;
use crate::storage::wal::fuzz_recover;
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
fn a_sound_log_and_every_prefix_of_it() {
    let log = sound_log();
    for end in 0..=log.len() {
        fuzz_recover(&log[..end]);
    }
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
}
