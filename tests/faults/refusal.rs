//! Data directories that must not be used, and the end that a signal brings.

use super::eventually;
use super::server::{Setup, expect_all, put_some};
use std::io::Write;
use std::net::TcpStream;
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
    assert!(said.contains("lost") && said.contains("hint"), "it does not say what happened and what to do:\n{said}");
}

#[test]
fn sigterm_ends_waits_and_idle_connections_in_time() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let server = setup.start();
    let mut client = setup.client();
    let acknowledged = put_some(&mut client, "key", 1, 10);
    let waits: Vec<_> = (0..4)
        .map(|number| {
            let mut waiter = setup.waiting_client();
            std::thread::spawn(move || waiter.get(&format!("/v1/kv/absent/{number}?wait=60s")))
        })
        .collect();
    let mut half_sent = TcpStream::connect(setup.address).unwrap();
    half_sent.write_all(b"PUT /v1/kv/never HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf").unwrap();
    eventually("the blocked reads have arrived", Duration::from_secs(10), || {
        (client.get("/v1/status").ok()?.json()["watchers"].as_u64()? >= 4).then_some(())
    });
    let (status, took) = server.terminate(Duration::from_secs(20));
    assert!(status.success(), "ended with {status}:\n{}", setup.output());
    assert!(took < Duration::from_secs(15), "took {took:?}");
    for wait in waits {
        // An answer that it is over (or that the member is), or at worst a closed connection.
        let over = wait.join().expect("the waiter ended");
        assert!(over.as_ref().map_or(true, |answer| matches!(answer.status, 404 | 503)), "{over:?}");
    }
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    assert_eq!(setup.client().get("/v1/kv/never").expect("an answer").status, 404);
    server.stop();
}
