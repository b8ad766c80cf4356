//! Random calls, restarts and crashes against the naive model.

use super::harness::*;
use crate::storage::simdisk::{SimDisk, Survivors};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Call(Call),
    Close,
    Crash(u64),
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let call = prop_oneof![
        8 => prop::collection::vec(prop_oneof![4 => 0..120_usize, 1 => 0..1500_usize], 1..5).prop_map(Call::Append),
        2 => Just(Call::Vote),
        2 => Just(Call::Committed),
        2 => (0..12_u64).prop_map(Call::Truncate),
        2 => prop_oneof![6 => 0..8_u64, 1 => 0..40_u64].prop_map(Call::Purge),
        6 => Just(Call::Pump),
    ];
    prop_oneof![
        20 => call.prop_map(Step::Call),
        1 => Just(Step::Close),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Kill),
    ]
}

fn run(steps: Vec<Step>, segment_bytes: u64, page: usize) {
    let disk = SimDisk::with_page_bytes(page);
    let mut driver = Driver::open(&disk, segment_bytes, None).unwrap();
    for step in steps {
        match step {
            Step::Call(call) => {
                driver.call(&call);
                assert!(observe(&driver.wal).same_as(driver.newest()), "reads see every call at once");
                continue;
            }
            Step::Close => driver.wal.close(),
            Step::Crash(seed) => {
                disk.crash(Survivors::Seeded(seed));
                driver.wal.abandon();
            }
            Step::Kill => {
                disk.restart_process();
                driver.wal.abandon();
            }
        }
        let again = Driver::open(&disk, segment_bytes, None).unwrap();
        driver.check_recovered(&again.wal).unwrap();
        driver = Driver { serial: driver.serial, ..again };
    }
    assert_eq!(driver.told.lock().fatal, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_its_model(
        steps in prop::collection::vec(step(), 1..80),
        segment_bytes in 1024..4096_u64,
        page in prop_oneof![Just(512_usize), Just(4096)],
    ) {
        run(steps, segment_bytes, page);
    }
}
