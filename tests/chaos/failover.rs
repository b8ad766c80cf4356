//! How long writes stand still, and that nobody is told of a failure without need: the leader is
//! killed, hands over, every member is restarted in turn, and nothing at all happens under full load.
//!
//! Times are judged by their middle where there are few of them, by their 99th percentile where there
//! are enough for one (`TENURE_KILLS=50`, `TENURE_HAND_OVERS=30`, with a release binary in `TENURE_TEST_BINARY`).

use super::fleet::{Fleet, View};
use super::http::{Client, Lost, Response};
use super::{env_number, eventually, machine};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a write that stands still may take after the leader has died.
const RESUMED_WITHIN: Duration = Duration::from_millis(1_500);
const HANDED_OVER_WITHIN: Duration = Duration::from_millis(50);
const GIVE_UP: Duration = Duration::from_secs(30);

/// What became of the writes of one writer.
#[derive(Debug, Default)]
struct Writes {
    /// When each was acknowledged.
    acknowledged: Vec<Instant>,
    /// Keys that were acknowledged.
    keys: Vec<String>,
    /// Attempts after which the write was tried again, and why.
    repeated: Vec<String>,
    /// Writes that nobody acknowledged in the end.
    failed: Vec<String>,
    slowest: Duration,
}

/// Writers that go to another member when one refuses or does not answer, as a client is to do: with
/// an idempotency key, so that repeating is safe.
struct Writers {
    stopping: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Writes>>,
}

impl Writers {
    fn start(view: &Arc<View>, count: usize, tag: &str) -> Self {
        let (stopping, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count).map(|writer| {
            let (view, stopping, done) = (Arc::clone(view), Arc::clone(&stopping), Arc::clone(&done));
            let tag = format!("{tag}/{writer}");
            std::thread::spawn(move || write(&view, writer, &tag, &stopping, &done))
        });
        let threads = threads.collect();
        Self { stopping, count: done, threads }
    }

    fn await_some(&self, more: u64) {
        let before = self.count.load(Ordering::SeqCst);
        eventually("writes are acknowledged", GIVE_UP, || {
            (self.count.load(Ordering::SeqCst) >= before + more).then_some(())
        });
    }

    fn stop(self) -> Writes {
        self.stopping.store(true, Ordering::SeqCst);
        let mut all = Writes::default();
        for thread in self.threads {
            let writes = thread.join().expect("a writer ended");
            all.acknowledged.extend(writes.acknowledged);
            all.keys.extend(writes.keys);
            all.repeated.extend(writes.repeated);
            all.failed.extend(writes.failed);
            all.slowest = all.slowest.max(writes.slowest);
        }
        all.acknowledged.sort_unstable();
        all
    }
}

fn write(view: &View, writer: usize, tag: &str, stopping: &AtomicBool, done: &AtomicU64) -> Writes {
    let mut writes = Writes::default();
    let mut slot = writer % view.len();
    let mut client = Client::new(view.address(slot), Duration::from_secs(5));
    for number in 0.. {
        if stopping.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{tag}/{number}");
        let begun = Instant::now();
        loop {
            let headers = [("idempotency-key", key.as_str())];
            let answer = client.request("PUT", &format!("/v1/kv/{key}?timeout=3s"), &headers, b"x");
            let why = match answer {
                Ok(answer) if answer.status < 300 => break,
                Ok(answer) => format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body)),
                Err(Lost::NotSent(error) | Lost::Unknown(error)) => error.to_string(),
            };
            writes.repeated.push(format!("{key} through slot {slot}: {why}"));
            if begun.elapsed() > GIVE_UP {
                writes.failed.push(key);
                return writes;
            }
            slot = (slot + 1) % view.len();
            client = Client::new(view.address(slot), Duration::from_secs(5));
        }
        done.fetch_add(1, Ordering::SeqCst);
        writes.slowest = writes.slowest.max(begun.elapsed());
        writes.acknowledged.push(Instant::now());
        writes.keys.push(key);
    }
    writes
}

/// Every one of these keys is there, by a linearizable listing through this member.
fn all_there(fleet: &Fleet, slot: usize, tag: &str, keys: &[String]) {
    let mut there = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let target = format!("/v1/kv?prefix={tag}/&keys_only&limit=10000{cursor}");
        let page = eventually("the keys are listed", GIVE_UP, || fleet.json(slot, &target));
        let items = page["items"].as_array().expect("items").iter();
        there.extend(items.map(|item| item["key"].as_str().expect("a text key").to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let lost: Vec<&String> = keys.iter().filter(|key| !there.contains(*key)).collect();
    assert!(lost.is_empty(), "VIOLATION: acknowledged and lost: {lost:?}");
}

/// The longest time between two acknowledgements, from just before `from` on.
fn gap(acknowledged: &[Instant], from: Instant, to: Instant) -> Duration {
    let pairs = acknowledged.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
    pairs.map(|pair| pair[1] - pair[0]).max().expect("writes went on")
}

fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn percentile_99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

#[test]
fn writes_go_on_soon_after_the_leader_is_killed() {
    let _machine = machine();
    let kills = env_number("TENURE_KILLS").unwrap_or(5);
    let mut fleet = Fleet::start(3, &[], false);
    let mut times = Vec::new();
    for kill in 0..kills {
        let (leader, term) = fleet.leader();
        let writers = Writers::start(&fleet.view, 6, &format!("killed/{kill}"));
        writers.await_some(30);
        let killed = Instant::now();
        fleet.kill(leader);
        // All writers are at members that live by now, and go on.
        writers.await_some(30);
        let resumed = Instant::now();
        let writes = writers.stop();
        assert!(writes.failed.is_empty(), "{:?}", writes.failed);
        times.push(gap(&writes.acknowledged, killed, resumed));
        fleet.launch(leader);
        fleet.await_ready(Duration::from_secs(30)).unwrap();
        assert!(fleet.leader().1 > term, "no new leader: the kill did nothing");
        all_there(&fleet, leader, &format!("killed/{kill}"), &writes.keys);
    }
    let (half, most) = (middle(&mut times), percentile_99(&mut times));
    eprintln!("{kills} kills of the leader: writes stood still for {half:?} in the middle, {most:?} at most (p99)");
    let judged = if kills >= 50 { most } else { half };
    assert!(judged <= RESUMED_WITHIN, "{times:?}");
    assert!(most <= 2 * RESUMED_WITHIN, "{times:?}");
}

#[test]
fn a_planned_hand_over_fails_no_request_and_is_hardly_felt() {
    let _machine = machine();
    let rounds = env_number("TENURE_HAND_OVERS").unwrap_or(9);
    let mut fleet = Fleet::start(3, &[], false);
    let mut times = Vec::new();
    for round in 0..rounds {
        let (leader, term) = fleet.leader();
        let to = fleet.name((leader + 1) % 3);
        let writers = Writers::start(&fleet.view, 6, &format!("handed/{round}"));
        writers.await_some(60);
        let begun = Instant::now();
        let answer = fleet.ask(leader, "POST", &format!("/v1/cluster/leader?to={to}"), Duration::from_secs(10));
        let status = answer.as_ref().map(|answer| answer.status);
        assert_eq!(status, Some(200), "{answer:?}");
        writers.await_some(60);
        let ended = Instant::now();
        let writes = writers.stop();
        assert!(writes.repeated.is_empty(), "not one request may fail: {:?}", writes.repeated);
        assert!(fleet.leader().1 > term, "the lead has not moved");
        times.push(gap(&writes.acknowledged, begun, ended));
    }
    let (half, most) = (middle(&mut times), percentile_99(&mut times));
    eprintln!("{rounds} hand-overs: writes stood still for {half:?} in the middle, {most:?} at most (p99)");
    // Few of them, on a machine that also builds and tests, are only held to the order of magnitude.
    let bound = if rounds >= 30 { HANDED_OVER_WITHIN } else { 5 * HANDED_OVER_WITHIN };
    assert!(half <= bound, "{times:?}");
}

#[test]
fn a_rolling_restart_under_load_fails_no_write() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let writers = Writers::start(&fleet.view, 9, "rolling");
    for round in 0..2 {
        for slot in 0..3 {
            writers.await_some(50);
            let status = fleet.terminate(slot);
            assert!(status.success(), "round {round}: {} ended with {status}", fleet.name(slot));
            writers.await_some(50);
            fleet.launch(slot);
            fleet.await_ready(Duration::from_secs(30)).unwrap();
        }
    }
    let writes = writers.stop();
    eprintln!(
        "six restarts: {} writes, none failed, {} repeated at another member, the slowest took {:?}",
        writes.keys.len(),
        writes.repeated.len(),
        writes.slowest
    );
    assert!(writes.failed.is_empty(), "{:?}", writes.failed);
    // A graceful end is no outage: what is refused or cut off is done elsewhere at once.
    assert!(writes.slowest < Duration::from_secs(3), "{:?}: {:?}", writes.slowest, writes.repeated);
    for slot in 0..3 {
        all_there(&fleet, slot, "rolling", &writes.keys);
    }
    assert!(fleet.panics().is_empty(), "{:?}", fleet.panics());
}

#[test]
fn full_load_brings_no_election() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let (leader, term) = fleet.leader();
    let seconds = env_number("TENURE_FULL_LOAD_SECONDS").unwrap_or(10);
    let writers = Writers::start(&fleet.view, 64, "full");
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(fleet.leadership(), Some((leader, term)), "an election nobody needed");
    }
    let writes = writers.stop();
    eprintln!("{} writes in {seconds} s, the leader stayed; the slowest took {:?}", writes.keys.len(), writes.slowest);
    assert!(writes.repeated.is_empty(), "{:?}", writes.repeated);
    assert_eq!(fleet.leader(), (leader, term));
    assert!(writes.keys.len() > 500, "that was no load");
}

/// Whoever is cut off from the others says so, and never answers from what it has.
#[test]
fn a_leader_that_is_cut_off_answers_no_linearizable_read() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let (leader, _) = fleet.leader();
    let other = (leader + 1) % 3;
    let put = |fleet: &Fleet, slot: usize, value: &str| -> Option<Response> {
        let mut client = fleet.client(slot, Duration::from_secs(5));
        let answer = client.request("PUT", "/v1/kv/k?timeout=2s", &[], value.as_bytes()).ok()?;
        (answer.status < 300).then_some(answer)
    };
    put(&fleet, leader, "old").expect("written");
    let numbers: Vec<usize> = (0..3).map(|slot| fleet.number(slot)).collect();
    let cut: Vec<(usize, usize)> = numbers
        .iter()
        .filter(|number| **number != numbers[leader])
        .flat_map(|number| [(numbers[leader], *number), (*number, numbers[leader])])
        .collect();
    fleet.net.set(&cut, super::proxy::Rule::Hold);
    // Reads are asked for all the while that the others elect and write.
    let address = fleet.view.address(leader);
    let (over, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (over, seen) = (Arc::clone(&over), Arc::clone(&stale));
            std::thread::spawn(move || {
                let mut client = Client::new(address, Duration::from_secs(5));
                while !over.load(Ordering::SeqCst) {
                    let called = Instant::now();
                    if let Ok(answer) = client.get("/v1/kv/k?timeout=500ms")
                        && answer.status == 200
                    {
                        seen.lock().unwrap().push((called, answer.body));
                    }
                }
            })
        })
        .collect();
    let written =
        eventually("the others go on", Duration::from_secs(20), || put(&fleet, other, "new").map(|_| Instant::now()));
    std::thread::sleep(Duration::from_secs(2));
    assert!(fleet.net.touched() > 0, "the cut held nothing back");
    fleet.net.heal();
    eventually("the former leader reads again", Duration::from_secs(20), || {
        let answer = fleet.ask(leader, "GET", "/v1/kv/k?timeout=1s", Duration::from_secs(5))?;
        (answer.status == 200 && answer.body == b"new").then_some(())
    });
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.join().unwrap();
    }
    let seen = stale.lock().unwrap();
    let bad = seen.iter().find(|(called, body)| *called > written && body == b"old");
    assert!(bad.is_none(), "VIOLATION: a stale read: {bad:?}");
}

/// The first batch of a cluster comes while its leader can ask nobody else for the time. If it began its term
/// without, the next leader's would step from then to today, and requests must not be so much older for that.
#[test]
fn a_repetition_is_known_though_the_first_term_began_in_a_standstill() {
    let _machine = machine();
    let mut fleet = Fleet::start(3, &[], false);
    let (leader, _) = fleet.leader();
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|slot| fleet.pause(*slot));
    let first = std::thread::scope(|scope| {
        let writer = scope.spawn(|| fleet.put(leader, "once", "x"));
        // Longer than a member is waited for that is asked for the time.
        std::thread::sleep(Duration::from_millis(1_500));
        others.iter().for_each(|slot| fleet.resume(*slot));
        writer.join().unwrap()
    });
    assert!(fleet.kill(leader), "it had ended before");
    assert_eq!(fleet.put(others[0], "once", "x"), first, "VIOLATION: a write was done twice");
}
