//! Power cuts under load: the disk keeps exactly what was synced. The member is paused before each
//! cut, because a sync that is under way at that very moment may be reported done without being so.

use super::campaign::Campaign;
use super::mount::Mount;
use super::server::Setup;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const CUTS: u64 = 50;
const DISK_BYTES: u64 = 1 << 30;

#[test]
fn power_cuts_lose_no_acknowledged_write() {
    let seed = super::seed("powercut");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut mount = match Mount::new(DISK_BYTES) {
        Ok(mount) => mount,
        Err(why) => return super::skipped("powercut", &why),
    };
    let flags = ["--snapshot-bytes=128KiB", "--disk-reserve-bytes=1MiB"];
    let setup = Setup::new(&mount.path().join("data"), mount.scratch(), &flags);
    let mut campaign = Campaign::new(setup, seed);
    let mut server = Some(campaign.setup.start());
    for _ in 0..super::env_number("TENURE_FAULT_CUTS").unwrap_or(CUTS) {
        let delay = Duration::from_millis(rng.random_range(5..=400));
        let running = server.take().expect("a member is running");
        let ops = campaign.fault(running, |server, answered| {
            let begun = answered();
            super::eventually("some operations are answered", Duration::from_secs(20), || {
                (answered() > begun + 5).then_some(())
            });
            std::thread::sleep(delay);
            server.pause();
            mount.cut().expect("the power can be cut");
            server.kill();
        });
        mount.power_on().expect("the disk comes back");
        server = Some(campaign.setup.start());
        campaign.verify(ops);
    }
    campaign.conclude(server.take().expect("a member is running"), "powercut");
}

#[test]
fn a_cut_loses_what_was_not_synced_and_keeps_what_was() {
    use std::io::Write;
    let mut mount = match Mount::new(64 << 20) {
        Ok(mount) => mount,
        Err(why) => return super::skipped("mount", &why),
    };
    let (synced, unsynced) = (mount.path().join("synced"), mount.path().join("unsynced"));
    let mut file = std::fs::File::create(&synced).unwrap();
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    std::fs::File::open(mount.path()).unwrap().sync_all().unwrap();
    file.write_all(b" and lost").unwrap();
    std::fs::write(&unsynced, b"lost").unwrap();
    drop(file);
    mount.cut().unwrap();
    assert!(std::fs::write(&unsynced, b"x").is_err(), "the disk still takes writes");
    mount.power_on().unwrap();
    assert_eq!(std::fs::read(&synced).unwrap(), b"kept");
    assert!(std::fs::read(&unsynced).unwrap_or_default().is_empty());
}
