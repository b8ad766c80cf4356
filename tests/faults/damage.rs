//! Files that rot: damage before the log's end is never passed over, a damaged snapshot is never
//! trusted, and what to do is said.

use super::eventually;
use super::server::{Setup, expect_all, put_some};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Where the zeros of a preallocated file begin.
fn written(path: &Path) -> usize {
    std::fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn damage_in_the_middle_of_the_log_is_refused_with_a_way_out() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--snapshot-bytes=1GiB"]);
    let server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "key", 100, 2_000);
    server.kill();
    let log = files(&setup.data_dir.join("wal"), ".wal").pop().expect("a log");
    let middle = written(&log) / 2;
    flip(&log, middle);
    let before = std::fs::read(&log).unwrap();
    let said = setup.start_refused();
    let name = log.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name), "it does not name the file {name}:\n{said}");
    assert!(said.contains("damaged"), "it does not say that it is damaged:\n{said}");
    assert!(said.contains("backup"), "it does not say what to do:\n{said}");
    assert!(std::fs::read(&log).unwrap() == before, "VIOLATION: the refused start changed the log");
    setup.start_refused();
    flip(&log, middle);
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}

#[test]
fn a_torn_end_of_the_log_is_cut() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--snapshot-bytes=1GiB"]);
    let server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "key", 20, 200);
    server.kill();
    let log = files(&setup.data_dir.join("wal"), ".wal").pop().expect("a log");
    let mut bytes = std::fs::read(&log).unwrap();
    let end = written(&log).next_multiple_of(512);
    bytes[end..end + 300].fill(0xA5);
    std::fs::write(&log, bytes).unwrap();
    for _ in 0..2 {
        let server = setup.start();
        expect_all(&mut setup.client(), &acknowledged);
        server.kill();
    }
}

#[test]
fn a_damaged_newest_snapshot_is_replaced_by_the_older_one_and_the_log() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--snapshot-bytes=64KiB"]);
    let server = setup.start();
    let snapshots = setup.data_dir.join("snapshot");
    let mut acknowledged = Vec::new();
    let mut round = 0;
    eventually("two snapshots", Duration::from_secs(60), || {
        round += 1;
        acknowledged.extend(put_some(&mut setup.client(), &format!("round/{round}"), 40, 2_000));
        (files(&snapshots, ".snap").len() >= 2).then_some(())
    });
    acknowledged.extend(put_some(&mut setup.client(), "last", 5, 100));
    server.stop();
    let newest = files(&snapshots, ".snap").pop().expect("a snapshot");
    flip(&newest, written(&newest) / 2);
    setup.forget_output();
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    let said = setup.output();
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    let warned = said.lines().any(|line| line.contains("damaged") && line.contains(&name));
    assert!(warned, "no warning names {name}:\n{said}");
    put_some(&mut setup.client(), "after", 5, 10);
    server.stop();
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}
