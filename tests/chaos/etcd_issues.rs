//! Correctness bugs that etcd had, by their issue numbers, where a cluster of processes is the cheapest
//! place to look for them. (#17247, #17780, #18667 and #19179 are tests of the machine and of watches.)

use super::fleet::Fleet;
use super::http::Client;
use super::proxy::Rule;
use super::{eventually, machine};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const WELL: Duration = Duration::from_secs(40);

fn isolate(fleet: &Fleet, slot: usize, rule: Rule) {
    let me = fleet.number(slot);
    let others = (0..fleet.count()).map(|slot| fleet.number(slot)).filter(|number| *number != me);
    fleet.net.set(&others.flat_map(|other| [(me, other), (other, me)]).collect::<Vec<_>>(), rule);
}

/// Transactions on two keys, through this member.
fn transfer(fleet: &Fleet, slot: usize, count: usize, tag: &str) {
    let mut client = fleet.client(slot, Duration::from_secs(5));
    for number in 0..count {
        let body = format!(
            r#"{{"then":[{{"put":{{"key":"{tag}/a","value":"{number}"}}}},{{"put":{{"key":"{tag}/b/{number}","value":"x"}}}}]}}"#
        );
        let answer = client.request("POST", "/v1/txn", &[("content-type", "application/json")], body.as_bytes());
        // Only that much is done matters here.
        drop(answer);
    }
}

#[test]
fn issue_13766_what_is_applied_and_what_is_stored_never_part() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=16KiB"], false);
    for round in 0..4 {
        std::thread::scope(|scope| {
            let shared = &fleet;
            for slot in 0..3 {
                scope.spawn(move || transfer(shared, slot, 60, &format!("t{slot}/{round}")));
            }
        });
        let slots: Vec<usize> = if round % 2 == 0 { vec![0, 1, 2] } else { vec![round % 3] };
        slots.iter().for_each(|slot| assert!(fleet.kill(*slot), "it had ended before"));
        slots.iter().for_each(|slot| fleet.launch(*slot));
        fleet.await_ready(WELL).unwrap();
        fleet.one_hash(&[0, 1, 2]);
    }
}

#[test]
fn issue_14370_a_single_member_keeps_what_it_has_answered() {
    let _machine = machine();
    let mut fleet = Fleet::start(1, &[], true);
    for round in 0..8 {
        let key = format!("k/{round}");
        let revision = fleet.put(0, &key, "x");
        // At once, so that nothing but the answered flush can have saved it.
        if fleet.has_disks() {
            fleet.cut_power(&[0]).unwrap();
        } else {
            fleet.kill(0);
        }
        fleet.launch(0);
        fleet.await_ready(WELL).unwrap();
        assert_eq!(fleet.get(0, &key).as_deref(), Some("x"), "VIOLATION: {key} of revision {revision} is lost");
    }
}

/// Snapshots are installed while history is compacted and the state is rewritten below them.
#[test]
fn issues_14685_and_20271_a_snapshot_installed_amid_maintenance_is_whole() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=16KiB"], false);
    for round in 0..3 {
        let slot = (fleet.leader().0 + 1) % 3;
        let others = [(slot + 1) % 3, (slot + 2) % 3];
        isolate(&fleet, slot, Rule::Lose);
        // Enough for several snapshots of what is there, so that the log is purged.
        for number in 0..160 {
            let revision = fleet.put(others[number % 2], &format!("k/{}/{round}", number % 40), &"x".repeat(2_000));
            if number % 10 == 9 {
                let target = format!("/v1/compact?revision={revision}");
                fleet.ask(others[0], "POST", &target, Duration::from_secs(5)).expect("compacted");
            }
        }
        fleet.net.heal();
        for number in 0..30 {
            let revision = fleet.put(others[number % 2], &format!("after/{number}"), &"x".repeat(2_000));
            let target = format!("/v1/compact?revision={}", revision - 1);
            fleet.ask(others[0], "POST", &target, Duration::from_secs(5)).expect("compacted");
        }
        fleet.await_ready(WELL).unwrap();
        fleet.one_hash(&[0, 1, 2]);
    }
    assert!(fleet.snapshots_installed() >= 2, "too few snapshots were installed");
    assert!(fleet.panics().is_empty(), "{:?}", fleet.panics());
}

/// A second snapshot is on its way before the first has been installed.
#[test]
fn issue_18055_two_snapshots_in_quick_succession_are_survived() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=16KiB"], false);
    let slot = (fleet.leader().0 + 1) % 3;
    let other = (slot + 1) % 3;
    isolate(&fleet, slot, Rule::Lose);
    for round in 0..6 {
        for number in 0..40 {
            fleet.put(other, &format!("k/{round}/{number}"), &"x".repeat(2_000));
        }
        // Long enough for a snapshot to set out, and mostly not for it to arrive.
        fleet.net.heal();
        std::thread::sleep(Duration::from_millis(60 * round));
        isolate(&fleet, slot, if round % 2 == 0 { Rule::Lose } else { Rule::Hold });
    }
    assert!(fleet.net.touched() > 0);
    fleet.net.heal();
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
    assert!(fleet.snapshots_installed() >= 1, "no snapshot was installed");
    assert!(fleet.panics().is_empty(), "{:?}", fleet.panics());
}

/// A read must not be answered by a barrier from before the election that it waited through.
#[test]
fn issues_20418_and_7331_no_read_is_stale_through_pauses_at_elections() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    fleet.put(0, "n", "0");
    let (over, floor, reads) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let addresses: Vec<_> = (0..3).map(|slot| fleet.view.address(slot)).collect();
    let writer = {
        let (over, floor, addresses) = (Arc::clone(&over), Arc::clone(&floor), addresses.clone());
        std::thread::spawn(move || {
            let mut slot = 0;
            for value in 1..u64::MAX {
                // Until it is certain: then every later read must see it.
                let key = format!("n{value}");
                loop {
                    if over.load(Ordering::SeqCst) {
                        return value;
                    }
                    let mut client = Client::new(addresses[slot], Duration::from_millis(1_500));
                    let headers = [("idempotency-key", key.as_str())];
                    let body = value.to_string();
                    let answer = client.request("PUT", "/v1/kv/n?timeout=1s", &headers, body.as_bytes());
                    if answer.is_ok_and(|answer| answer.status < 300) {
                        break;
                    }
                    slot = (slot + 1) % 3;
                }
                floor.store(value, Ordering::SeqCst);
            }
            0
        })
    };
    let readers: Vec<_> = (0..6)
        .map(|reader| {
            let (over, floor, reads) = (Arc::clone(&over), Arc::clone(&floor), Arc::clone(&reads));
            let address = addresses[reader % 3];
            std::thread::spawn(move || {
                let mut client = Client::new(address, Duration::from_secs(5));
                while !over.load(Ordering::SeqCst) {
                    let least = floor.load(Ordering::SeqCst);
                    let Ok(answer) = client.get("/v1/kv/n?timeout=2s") else { continue };
                    if answer.status == 200 {
                        let seen: u64 = String::from_utf8_lossy(&answer.body).parse().unwrap();
                        assert!(seen >= least, "VIOLATION: read {seen} after {least} was acknowledged");
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    let (_, before) = fleet.leader();
    for round in 0..8_u64 {
        let (leader, _) = fleet.leader();
        fleet.pause(leader);
        // About an election's time: some end before it, some after, some amid.
        std::thread::sleep(Duration::from_millis(350 + 150 * round));
        fleet.resume(leader);
        let target = floor.load(Ordering::SeqCst) + 3;
        eventually("writes go on", WELL, || (floor.load(Ordering::SeqCst) >= target).then_some(()));
    }
    over.store(true, Ordering::SeqCst);
    let written = writer.join().unwrap();
    for reader in readers {
        reader.join().expect("no read was stale");
    }
    let (_, after) = fleet.leader();
    assert!(after > before, "no pause brought an election");
    let reads = reads.load(Ordering::SeqCst);
    eprintln!("{written} writes, {reads} reads, terms {before} to {after}");
    assert!(reads > 50 && written > 20, "too little happened");
}

/// A leader that stood still takes nothing for ended that others have kept alive meanwhile, and renews
/// nothing by itself.
#[test]
fn issues_15247_12528_and_20615_a_leader_that_stood_still_ends_and_renews_no_lease() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let (leader, term) = fleet.leader();
    let other = (leader + 1) % 3;
    for id in ["a1", "a2"] {
        let answer = fleet.ask(other, "POST", &format!("/v1/leases?id={id}&ttl=3s"), Duration::from_secs(5));
        assert_eq!(answer.map(|answer| answer.status), Some(201));
        let mut client = fleet.client(other, Duration::from_secs(5));
        client.request("PUT", &format!("/v1/kv/leased/{id}?lease={id}"), &[], b"x").expect("written");
    }
    let keep = |fleet: &Fleet, slot: usize, id: &str| {
        let target = format!("/v1/leases/{id}/keepalive?timeout=1s");
        fleet.ask(slot, "POST", &target, Duration::from_secs(2)).map(|answer| answer.status)
    };
    fleet.pause(leader);
    eventually("another leads", WELL, || {
        let status = fleet.json(other, "/v1/status")?;
        (status["term"].as_u64() > Some(term) && status["leader"].is_string()).then_some(())
    });
    // One is ended by the new leader, the other kept for longer than the old one's clock allows.
    let revoked = fleet.ask(other, "DELETE", "/v1/leases/a2", Duration::from_secs(5));
    assert_eq!(revoked.map(|answer| answer.status), Some(200));
    let address = fleet.view.address(leader);
    let asked_while_paused = std::thread::spawn(move || {
        let mut client = Client::new(address, Duration::from_secs(20));
        client.request("POST", "/v1/leases/a2/keepalive?timeout=10s", &[], b"").map(|answer| answer.status).ok()
    });
    let until = Instant::now() + Duration::from_secs(5);
    let mut kept = 0;
    while Instant::now() < until {
        kept += u32::from(keep(&fleet, other, "a1") == Some(200));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(kept > 5, "it was hardly kept alive");
    fleet.resume(leader);
    assert_ne!(asked_while_paused.join().unwrap(), Some(200), "VIOLATION: a revoked lease was renewed");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        keep(&fleet, other, "a1");
        for slot in 0..3 {
            assert!(fleet.get(slot, "leased/a1").is_some(), "VIOLATION: a lease that was kept alive has ended");
            assert_ne!(keep(&fleet, slot, "a2"), Some(200), "VIOLATION: a revoked lease was renewed");
        }
    }
    assert_eq!(fleet.get(leader, "leased/a2"), None);
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
}

/// openraft #2080: two members that do not hear each other, but a third, go on.
#[test]
fn a_partial_partition_does_not_stop_the_cluster() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    for round in 0..3 {
        let (leader, _) = fleet.leader();
        let (one, two) = (fleet.number(leader), fleet.number((leader + 1 + round % 2) % 3));
        let before = fleet.net.touched();
        fleet.net.set(&[(one, two), (two, one)], Rule::Hold);
        for number in 0..20 {
            // Through whichever member leads or reaches one that does.
            let slot = (leader + number) % 3;
            let target = format!("/v1/kv/k/{round}/{number}?timeout=2s");
            eventually("written through some member", Duration::from_secs(15), || {
                let through = |slot: usize| {
                    let mut client = fleet.client(slot, Duration::from_secs(4));
                    let headers = [("idempotency-key", target.as_str())];
                    let answer = client.request("PUT", &target, &headers, b"x").ok()?;
                    (answer.status < 300).then_some(())
                };
                through(slot).or_else(|| through((slot + 1) % 3))
            });
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(fleet.net.touched() > before, "the cut held nothing back");
        fleet.net.heal();
        fleet.await_ready(WELL).unwrap();
    }
    fleet.one_hash(&[0, 1, 2]);
}
