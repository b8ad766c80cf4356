//! SIGKILL at random moments under load, over and over: acknowledged writes stay, unknown ones
//! happened once or never, refused ones never, and no read that was answered turns out untrue.

use super::campaign::Campaign;
use super::server::Setup;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const KILLS: u64 = 100;

#[test]
fn kills_lose_and_invent_nothing() {
    let seed = super::seed("crash");
    let mut rng = StdRng::seed_from_u64(seed);
    let scratch = tempfile::tempdir().unwrap();
    // Small snapshots, so that kills also hit their writing and the log's purge.
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--snapshot-bytes=128KiB"]);
    let mut campaign = Campaign::new(setup, seed);
    let mut server = campaign.setup.start();
    for _ in 0..super::env_number("TENURE_FAULT_KILLS").unwrap_or(KILLS) {
        let delay = Duration::from_millis(rng.random_range(1..=400));
        let ops = campaign.fault(server, |server, _| {
            std::thread::sleep(delay);
            server.kill();
        });
        // Now and then the kill hits a start.
        if rng.random_ratio(1, 8) {
            let starting = campaign.setup.launch();
            std::thread::sleep(Duration::from_millis(rng.random_range(1..=150)));
            starting.kill();
        }
        server = campaign.setup.start();
        campaign.verify(ops);
    }
    campaign.conclude(server, "crash");
}
