//! Disks that are full or fail: a full one refuses growth and heals, a failing one ends the process.

use super::mount::Mount;
use super::server::{Server, Setup, expect_all, put_some};
use super::strace::Injection;
use super::{eventually, skipped};
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn a_full_disk_refuses_growth_alone_and_heals_by_itself() {
    let mount = match Mount::new(1 << 30) {
        Ok(mount) => mount,
        Err(why) => return skipped("full disk", &why),
    };
    let flags = ["--disk-reserve-bytes=64MiB", "--snapshot-bytes=1GiB"];
    let setup = Setup::new(&mount.path().join("data"), mount.scratch(), &flags);
    let mut server = setup.start();
    let mut client = setup.client();
    let kept = put_some(&mut client, "kept", 50, 100);
    let doomed = put_some(&mut client, "doomed", 50, 100);

    let ballast = mount.fill(32 * MIB).expect("the disk can be filled");
    let mut attempts = 0;
    let refused = eventually("growth is refused", Duration::from_secs(30), || {
        attempts += 1;
        let answer = client.request("PUT", &format!("/v1/kv/refused/{attempts}"), &[], b"x").expect("an answer");
        (answer.status >= 300).then_some(answer)
    });
    assert_eq!(refused.status, 507);
    assert_eq!(refused.json()["code"], "storage-full");
    assert_eq!(refused.json()["applied"], "no");
    let absent = client.get(&format!("/v1/kv/refused/{attempts}")).expect("an answer");
    assert_eq!(absent.status, 404, "VIOLATION: applied, though it was refused");
    expect_all(&mut client, &kept);
    for (key, _, _) in &doomed {
        let answer = client.request("DELETE", &format!("/v1/kv/{key}"), &[], b"").expect("an answer");
        assert_eq!(answer.status, 200, "deletes must go on: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.json()["deleted"], 1);
    }
    let compacted = client.request("POST", "/v1/compact?keep_revisions=10", &[], b"").expect("an answer");
    assert_eq!(compacted.status, 200, "compaction must go on: {}", String::from_utf8_lossy(&compacted.body));

    std::fs::remove_file(ballast).unwrap();
    eventually("growth is accepted again", Duration::from_secs(30), || {
        let answer = client.request("PUT", "/v1/kv/healed", &[], b"x").expect("an answer");
        (answer.status < 300).then_some(())
    });
    assert!(server.is_running());
    server.stop();
    let server = setup.start();
    expect_all(&mut setup.client(), &kept);
    assert_eq!(setup.client().get("/v1/kv/doomed/7").expect("an answer").status, 404);
    server.stop();
}

/// Runs a member whose system calls begin to fail, until it ends. It must say why, once, and come
/// back with everything it had acknowledged.
fn fails_stop(test: &str, fault: &str, says: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let mut server = setup.start();
    let mut acknowledged = put_some(&mut setup.client(), "before", 50, 100);
    let injection = match Injection::attach(server.pid(), fault, scratch.path()) {
        Ok(injection) => injection,
        Err(why) => return skipped(test, &why),
    };
    setup.forget_output();
    acknowledged.extend(write_until_it_ends(&setup, &mut server));
    let status = server.wait(Duration::from_secs(20));
    assert!(injection.injected() > 0, "nothing was made to fail: the run is void");
    drop(injection);
    let output = setup.output();
    assert!(!status.success(), "VIOLATION: ended as if nothing had happened");
    assert!(!output.contains("panicked"), "it ended by a panic:\n{output}");
    let line = output.lines().find(|line| says.iter().all(|word| line.contains(word)));
    assert!(line.is_some(), "no line says {says:?}:\n{output}");
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    put_some(&mut setup.client(), "after", 5, 10);
    server.stop();
}

/// What was acknowledged until the member went away, which must happen soon.
fn write_until_it_ends(setup: &Setup, server: &mut Server) -> Vec<(String, String, i64)> {
    let mut client = setup.client();
    let mut acknowledged = Vec::new();
    for number in 0..500 {
        let key = format!("during/{number}");
        let Ok(answer) = client.request("PUT", &format!("/v1/kv/{key}"), &[], b"x") else { return acknowledged };
        if answer.status >= 300 {
            return acknowledged;
        }
        acknowledged.push((key, "x".to_owned(), answer.json()["revision"].as_i64().expect("a revision")));
        if !server.is_running() {
            return acknowledged;
        }
    }
    panic!("VIOLATION: five hundred writes were acknowledged while every sync failed")
}

#[test]
fn a_failed_sync_ends_the_process() {
    fails_stop("failed sync", "fsync,fdatasync:error=EIO:when=5+", &["Input/output error"]);
}

#[test]
fn a_sync_that_fails_once_is_not_retried() {
    fails_stop("sync that fails once", "fsync,fdatasync:error=EIO:when=3", &["Input/output error"]);
}

#[test]
fn a_log_that_meets_a_full_disk_after_all_ends_the_process() {
    fails_stop("full disk under the log", "pwrite64,pwritev,pwritev2:error=ENOSPC:when=3+", &["No space left"]);
}
