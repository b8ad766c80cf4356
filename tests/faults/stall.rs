//! A disk that does not answer: the member refuses at once what needs it, heals when it does, gives up
//! when told to, and can be stopped meanwhile.

use super::http::Client;
use super::server::{Setup, expect_all, put_some};
use super::strace::Injection;
use super::{eventually, skipped};
use std::time::{Duration, Instant};

/// Two of the longest election timeouts, by default.
const STALLED_AFTER: Duration = Duration::from_millis(1200);

/// Makes the log's next flush take so many seconds.
fn hang(pid: u32, seconds: u64, scratch: &std::path::Path) -> Result<Injection, String> {
    let micros = seconds * 1_000_000;
    Injection::attach(pid, &format!("fsync,fdatasync:delay_enter={micros}:when=1"), scratch)
}

/// A write that reaches the log and stays there; its answer, if one comes.
fn pending(setup: &Setup) -> std::thread::JoinHandle<Option<(u16, serde_json::Value)>> {
    let mut client = setup.client();
    std::thread::spawn(move || {
        let answer = client.request("PUT", "/v1/kv/pending?timeout=2s", &[], b"x").ok()?;
        Some((answer.status, answer.json()))
    })
}

fn await_stall(client: &mut Client) {
    eventually("the stall is noticed", STALLED_AFTER * 10, || {
        let ready = client.get("/readyz").ok()?;
        (ready.status == 503 && String::from_utf8_lossy(&ready.body).contains("[-]disk failed")).then_some(())
    });
}

fn alarms(client: &mut Client) -> Vec<String> {
    let status = client.get("/v1/status").expect("an answer").json();
    let alarms = status["alarms"].as_array().expect("a list").iter();
    alarms.map(|alarm| alarm.as_str().expect("a name").to_owned()).collect()
}

fn metric(client: &mut Client, name: &str) -> f64 {
    let page = String::from_utf8(client.get("/metrics").expect("an answer").body).expect("text");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::parse);
    line.unwrap_or_else(|| panic!("no metric {name}")).expect("a number")
}

#[test]
fn a_stalled_disk_refuses_at_once_and_heals() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--disk-stall-abort=0"]);
    let server = setup.start();
    let mut client = setup.client();
    let acknowledged = put_some(&mut client, "before", 20, 100);
    let injection = match hang(server.pid(), 8, scratch.path()) {
        Ok(injection) => injection,
        Err(why) => return skipped("stalled disk", &why),
    };
    let pending = pending(&setup);
    await_stall(&mut client);

    let asked = Instant::now();
    let write = client.request("PUT", "/v1/kv/refused", &[], b"x").expect("an answer");
    assert_eq!((write.status, &write.json()["code"]), (503, &"disk-stalled".into()));
    assert_eq!(write.json()["applied"], "no");
    let read = client.get("/v1/kv/before/0").expect("an answer");
    assert_eq!((read.status, &read.json()["code"]), (503, &"disk-stalled".into()));
    assert!(asked.elapsed() < STALLED_AFTER, "refused, but not at once: {:?}", asked.elapsed());
    assert_eq!(client.get("/v1/kv/before/0?consistency=stale").expect("an answer").status, 200);
    assert_eq!(alarms(&mut client), ["slow-disk"]);
    eventually("the metric tells", Duration::from_secs(5), || {
        (metric(&mut client, "tenure_wal_stall_seconds") > 1.0).then_some(())
    });
    let (status, answer) = pending.join().expect("the writer ended").expect("an answer");
    assert_eq!((status, &answer["applied"]), (504, &"unknown".into()), "it was proposed before the stall: {answer}");

    eventually("writes are accepted again", Duration::from_secs(20), || {
        let answer = client.request("PUT", "/v1/kv/after", &[], b"x").expect("an answer");
        (answer.status < 300).then_some(())
    });
    drop(injection);
    assert_eq!(alarms(&mut client), [""; 0]);
    eventually("the end is noted", Duration::from_secs(5), || setup.output().contains("answers again").then_some(()));
    assert!((metric(&mut client, "tenure_wal_stalls_total") - 1.0).abs() < f64::EPSILON);
    let output = setup.output();
    assert_eq!(output.matches("the log's disk is stalled").count(), 1, "said once:\n{output}");
    expect_all(&mut client, &acknowledged);
    assert_eq!(client.get("/v1/kv/refused").expect("an answer").status, 404, "VIOLATION: applied, though refused");
    assert_eq!(
        client.get("/v1/kv/pending").expect("an answer").status,
        200,
        "it was in the log, and the log is durable"
    );
    server.stop();
}

#[test]
fn a_disk_that_stays_stalled_ends_the_process() {
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &["--disk-stall-abort=3s"]);
    let mut server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "before", 20, 100);
    let injection = match hang(server.pid(), 60, scratch.path()) {
        Ok(injection) => injection,
        Err(why) => return skipped("disk that stays stalled", &why),
    };
    let begun = Instant::now();
    let mut client = setup.client();
    let writer = std::thread::spawn(move || client.request("PUT", "/v1/kv/pending?timeout=60s", &[], b"x"));
    eventually("it gives up", Duration::from_secs(20), || setup.output().contains("disk-stall-abort").then_some(()));
    assert!(begun.elapsed() >= Duration::from_secs(3), "it gave up before its time");
    // The last of a process goes when the kernel gets the thread back that waits for the disk.
    drop(injection);
    let status = server.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(74), "{}", setup.output());
    let output = setup.output();
    assert!(!output.contains("panicked"), "it ended by a panic:\n{output}");
    let answer = writer.join().expect("the writer ended");
    assert!(answer.is_err(), "VIOLATION: answered {answer:?} without a durable log");
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}

#[test]
fn a_stalled_member_can_be_stopped() {
    let scratch = tempfile::tempdir().unwrap();
    let flags = ["--disk-stall-abort=0", "--shutdown-timeout=2s"];
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &flags);
    let mut server = setup.start();
    let acknowledged = put_some(&mut setup.client(), "before", 20, 100);
    let injection = match hang(server.pid(), 60, scratch.path()) {
        Ok(injection) => injection,
        Err(why) => return skipped("stop of a stalled member", &why),
    };
    let _pending = pending(&setup);
    await_stall(&mut setup.client());
    server.ask_to_stop();
    eventually("it stops without the disk", Duration::from_secs(6), || {
        setup.output().contains("stopped with work left").then_some(())
    });
    drop(injection);
    server.wait(Duration::from_secs(20));
    let server = setup.start();
    expect_all(&mut setup.client(), &acknowledged);
    server.stop();
}
