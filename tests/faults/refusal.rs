//! Data directories that must not be used, and the end that a signal brings.

use super::server::{Setup, expect_all, put_some};
use std::io::{BufRead, Read};
use std::time::Duration;

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let mut server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "key", 5, 10);
    let second_scratch = tempfile::tempdir().unwrap();
    let second = Setup::new(&setup.data_dir, second_scratch.path(), &[]);
    let said = second.start_refused();
    assert!(said.contains("another process"), "it does not say why:\n{said}");
    assert!(server.is_running());
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}

#[test]
fn half_an_identity_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "key", 5, 10);
    server.stop();
    for lost in ["IDENTITY", "wal/IDENTITY"] {
        let (path, aside) = (setup.data_dir.join(lost), scratch.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let said = setup.start_refused();
        assert!(said.contains(lost) && said.contains("hint"), "{lost}:\n{said}");
        assert!(!path.exists(), "{lost} was made anew by a refused start");
        std::fs::rename(&aside, &path).unwrap();
    }
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}

#[test]
fn a_lost_log_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let server = setup.start();
    put_some(&mut setup.client(), "key", 5, 10);
    server.stop();
    for entry in std::fs::read_dir(setup.data_dir.join("wal")).unwrap().flatten() {
        if entry.file_name() != "IDENTITY" {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let said = setup.start_refused();
    assert!(said.contains("wal") && said.contains("hint"), "it does not say what is lost and what to do:\n{said}");
}

#[test]
fn sigterm_ends_streams_and_waits_in_time() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let server = setup.start();
    let mut client = setup.client();
    put_some(&mut client, "key", 1, 10);
    let mut stream = client.stream("/v1/watch?prefix=key/&after=1").expect("a stream");
    let mut line = String::new();
    while !line.contains("key/0") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("the stream gives its first event") > 0);
    }
    let mut waiter = setup.client();
    let waiting = std::thread::spawn(move || waiter.get("/v1/kv/absent?wait=60s"));
    let mut idle = setup.client();
    idle.get("/v1/status").expect("an answer");
    super::eventually("the blocked read has arrived", Duration::from_secs(10), || {
        (client.get("/v1/status").ok()?.json()["watchers"].as_u64()? >= 2).then_some(())
    });
    let (status, took) = server.terminate(Duration::from_secs(20));
    assert!(status.success(), "ended with {status}:\n{}", setup.output());
    assert!(took < Duration::from_secs(15), "took {took:?}");
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(ended.is_ok(), "the stream was cut off, not ended: {ended:?}");
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.trim_end().ends_with('0'), "the stream's last chunk is missing: {rest:?}");
    let waited = waiting.join().expect("the waiter ended");
    assert!(waited.is_err() || waited.is_ok_and(|answer| matches!(answer.status, 404 | 503)));
    let server = setup.start();
    server.stop();
}
