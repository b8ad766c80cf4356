//! What a member finds on its disk when it starts, row by row: part or all of it lost, damaged, or
//! older than it should be. It never serves what it cannot vouch for, and always can come back, if only
//! as a new member.

use super::fleet::Fleet;
use super::machine;
use std::path::{Path, PathBuf};
use std::time::Duration;

const WELL: Duration = Duration::from_secs(40);

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

/// Where the zeros of a preallocated file begin.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn flip_middle(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = written(&bytes) / 2;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn fill(fleet: &Fleet, slot: usize, tag: &str, count: usize) {
    for number in 0..count {
        fleet.put(slot, &format!("{tag}/{number}"), &"x".repeat(1_000));
    }
}

fn follower(fleet: &mut Fleet) -> usize {
    (fleet.leader().0 + 1) % 3
}

/// The slot's member, which cannot come back, is replaced; all have all.
fn comes_back_as_another(fleet: &mut Fleet, slot: usize, tag: &str, count: usize) {
    let member = |fleet: &Fleet, slot: usize| {
        let other = (slot + 1) % 3;
        let known = fleet.json(other, &format!("/v1/cluster/members/{}", fleet.name(slot))).expect("it is known");
        known["id"].as_str().expect("an id").to_owned()
    };
    let before = member(fleet, slot);
    fleet.replace(slot).unwrap();
    assert_ne!(member(fleet, slot), before, "a member's id was used again");
    fleet.one_hash(&[0, 1, 2]);
    for number in 0..count {
        assert!(fleet.get(slot, &format!("{tag}/{number}")).is_some(), "VIOLATION: {tag}/{number} is lost");
    }
}

#[test]
fn a_member_that_lost_its_disk_does_not_come_back_under_its_name() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let slot = follower(&mut fleet);
    fill(&fleet, slot, "before", 20);
    fleet.kill(slot);
    std::fs::remove_dir_all(fleet.data(slot)).unwrap();
    let said = fleet.launch_refused(slot);
    assert!(said.contains("lost"), "it does not say why:\n{said}");
    comes_back_as_another(&mut fleet, slot, "before", 20);
}

#[test]
fn a_voter_that_lost_its_disk_and_a_stale_one_elect_nobody() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let (leader, _) = fleet.leader();
    let (stale, lost) = ((leader + 1) % 3, (leader + 2) % 3);
    fill(&fleet, leader, "all", 5);
    fleet.kill(stale);
    // Acknowledged by the leader and the one whose disk will be lost.
    fill(&fleet, leader, "two", 20);
    fleet.kill(leader);
    fleet.kill(lost);
    std::fs::remove_dir_all(fleet.data(lost)).unwrap();
    fleet.launch(stale);
    fleet.launch(lost);
    // For many election timeouts, nothing may be written or read.
    for _ in 0..5 {
        for slot in [stale, lost] {
            let write = fleet.client(slot, Duration::from_secs(3)).request("PUT", "/v1/kv/new?timeout=1s", &[], b"x");
            assert!(!write.is_ok_and(|answer| answer.status < 300), "VIOLATION: written without a majority");
            let read = fleet.ask(slot, "GET", "/v1/kv/all/0?timeout=1s", Duration::from_secs(3));
            assert!(read.is_none_or(|answer| answer.status >= 500), "VIOLATION: read without a majority");
        }
    }
    // With the one that has it all, everything is there.
    fleet.kill(lost);
    fleet.launch(leader);
    for (tag, count) in [("all", 5), ("two", 20)] {
        for number in 0..count {
            assert!(fleet.get(leader, &format!("{tag}/{number}")).is_some(), "VIOLATION: {tag}/{number} is lost");
        }
    }
    fleet.one_hash(&[leader, stale]);
}

#[test]
fn a_log_lost_while_the_rest_is_kept_is_refused() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=16KiB"], false);
    let slot = follower(&mut fleet);
    fill(&fleet, slot, "before", 60);
    fleet.kill(slot);
    let wal = fleet.data(slot).join("wal");
    // The segments alone, then the directory with its copy of the identity.
    for path in files(&wal, ".wal") {
        std::fs::remove_file(path).unwrap();
    }
    let said = fleet.launch_refused(slot);
    assert!(said.contains("hint"), "it does not say what to do:\n{said}");
    std::fs::remove_dir_all(&wal).unwrap();
    let said = fleet.launch_refused(slot);
    assert!(said.contains("hint"), "it does not say what to do:\n{said}");
    comes_back_as_another(&mut fleet, slot, "before", 60);
}

#[test]
fn a_log_damaged_in_the_middle_is_refused_and_the_member_replaced() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let slot = follower(&mut fleet);
    fill(&fleet, slot, "before", 40);
    fleet.kill(slot);
    let log = files(&fleet.data(slot).join("wal"), ".wal").pop().expect("a log");
    flip_middle(&log);
    let said = fleet.launch_refused(slot);
    assert!(said.contains("damaged"), "it does not say why:\n{said}");
    comes_back_as_another(&mut fleet, slot, "before", 40);
}

#[test]
fn a_torn_end_of_the_log_is_cut_and_made_up_for_by_the_others() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let slot = follower(&mut fleet);
    fill(&fleet, slot, "before", 20);
    fleet.kill(slot);
    let log = files(&fleet.data(slot).join("wal"), ".wal").pop().expect("a log");
    let mut bytes = std::fs::read(&log).unwrap();
    let end = written(&bytes).next_multiple_of(512);
    bytes[end..end + 300].fill(0xA5);
    std::fs::write(&log, bytes).unwrap();
    fill(&fleet, (slot + 1) % 3, "meanwhile", 20);
    fleet.launch(slot);
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
    assert!(fleet.get(slot, "meanwhile/19").is_some());
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_older_and_two_to_the_others() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=16KiB"], false);
    let slot = follower(&mut fleet);
    let snapshots = fleet.data(slot).join("snapshot");
    let mut count = 0;
    while files(&snapshots, ".snap").len() < 2 && count < 2_000 {
        fleet.put(slot, &format!("before/{count}"), &"x".repeat(1_000));
        count += 1;
    }
    fleet.kill(slot);
    flip_middle(&files(&snapshots, ".snap").pop().expect("a snapshot"));
    fleet.launch(slot);
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
    fleet.kill(slot);
    files(&snapshots, ".snap").iter().for_each(|path| flip_middle(path));
    let said = fleet.launch_refused(slot);
    assert!(said.contains("damaged") || said.contains("snapshot"), "it does not say why:\n{said}");
    comes_back_as_another(&mut fleet, slot, "before", count);
}

/// How many files below it are nonsense now.
fn garble(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let garble_one = |path: PathBuf| {
        if path.is_dir() {
            return garble(&path);
        }
        std::fs::write(path, [0xA5; 4096]).unwrap();
        1
    };
    entries.map(garble_one).sum()
}

#[test]
fn a_lost_or_damaged_state_is_built_anew() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &["--snapshot-bytes=64KiB"], false);
    let slot = follower(&mut fleet);
    fill(&fleet, slot, "before", 150);
    let state = fleet.data(slot).join("state");
    fleet.kill(slot);
    std::fs::remove_dir_all(&state).unwrap();
    fleet.launch(slot);
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
    fleet.kill(slot);
    let garbled = garble(&state);
    assert!(garbled > 0, "nothing was damaged");
    fleet.launch(slot);
    fleet.await_ready(WELL).unwrap();
    fleet.one_hash(&[0, 1, 2]);
    for number in 0..150 {
        assert!(fleet.get(slot, &format!("before/{number}")).is_some());
    }
}

#[test]
fn a_restart_of_all_founds_no_second_cluster() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    fill(&fleet, 0, "before", 5);
    let id = |fleet: &Fleet, slot: usize| fleet.json(slot, "/v1/status").expect("an answer")["cluster_id"].clone();
    let before = id(&fleet, 0);
    (0..3).for_each(|slot| assert!(fleet.kill(slot), "it had ended before"));
    // The founder by itself founds nothing again, though it is told of all members.
    fleet.launch(0);
    std::thread::sleep(Duration::from_secs(2));
    let write = fleet.client(0, Duration::from_secs(3)).request("PUT", "/v1/kv/alone?timeout=1s", &[], b"x");
    assert!(write.map_or(true, |answer| answer.status >= 300), "VIOLATION: written without a majority");
    fleet.launch(1);
    fleet.launch(2);
    fleet.await_ready(WELL).unwrap();
    assert!((0..3).all(|slot| id(&fleet, slot) == before), "another cluster was founded");
    assert!(fleet.get(1, "before/4").is_some() && fleet.get(2, "alone").is_none());
    fleet.one_hash(&[0, 1, 2]);
}
