//! The judgement of a whole run: both checkers over all operations, what each member's watch told
//! against the account, revisions and terms that only rise, one state everywhere.

use super::check::{Violation, check};
use super::eventually;
use super::fleet::Fleet;
use super::linear;
use super::load::{Journal, Sight};
use super::op::{Log, Op, State};
use super::witness::{Heard, Testimony, digest};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const HEAL_WITHIN: Duration = Duration::from_secs(60);

/// Every contradiction found; empty is a pass. And how many keys were searched.
pub(crate) fn judge(journal: &Journal, testimony: &Testimony) -> (Vec<String>, usize) {
    let mut found = testimony.violations.clone();
    if let Err(Violation { kind, detail }) = check(&State::empty(), &journal.ops, &testimony.log) {
        found.push(format!("by revisions: {kind:?}: {}", short(&detail)));
    }
    let keys = match linear::check(&journal.ops) {
        Ok(keys) => keys,
        Err((key, verdict)) => {
            found.push(format!("by values: key {key} is {verdict:?}: {}", short(&of_key(&journal.ops, &key))));
            0
        }
    };
    found.extend(never_back(&journal.sights));
    found.extend(told_truly(&testimony.heard, &testimony.log));
    (found, keys)
}

fn short(text: &str) -> String {
    text.chars().filter(|letter| *letter != '-').take(6_000).collect()
}

fn of_key(ops: &[Op], key: &String) -> String {
    let mut ops: Vec<&Op> = ops.iter().filter(|op| op.action.keys().contains(&key)).collect();
    ops.sort_by_key(|op| op.call);
    format!("{ops:#?}")
}

/// What one process answered never goes back, whatever it was asked for.
pub(crate) fn never_back(sights: &[Sight]) -> Option<String> {
    let mut lives: BTreeMap<u64, Vec<Sight>> = BTreeMap::new();
    for sight in sights {
        lives.entry(sight.life).or_default().push(*sight);
    }
    lives.into_iter().find_map(|(life, mut by_call)| {
        let mut by_return = by_call.clone();
        by_call.sort_by_key(|sight| sight.call);
        by_return.sort_by_key(|sight| sight.returned);
        let mut returned = by_return.into_iter().peekable();
        let mut floor = 0;
        by_call.into_iter().find_map(|sight| {
            while let Some(earlier) = returned.next_if(|earlier| earlier.returned < sight.call) {
                floor = floor.max(earlier.revision);
            }
            let back = sight.revision < floor;
            back.then(|| format!("process {life} went back from revision {floor}: {sight:?}"))
        })
    })
}

/// Each stretch that a member's watch told is exactly what the account has there.
pub(crate) fn told_truly(heard: &[Heard], log: &Log) -> Option<String> {
    let last = log.last_key_value().map_or(1, |(revision, _)| *revision);
    heard.iter().find_map(|stretch| {
        let Heard { slot, after, upto, digest: told } = stretch;
        // Later than the account ends: nothing to hold it against.
        if *upto > last || upto <= after {
            return None;
        }
        let right = digest(log.range(after + 1..=*upto)) == *told;
        (!right).then(|| format!("the watch of slot {slot} told other events in {} ..= {upto}", after + 1))
    })
}

/// All members come to one state, which is what the account leads to; `Err` says what is amiss.
pub(crate) fn one_state(fleet: &mut Fleet, log: &Log) -> Result<String, String> {
    let deadline = Instant::now() + HEAL_WITHIN;
    let hashes = loop {
        let hashes: Vec<_> = (0..fleet.count()).filter_map(|slot| fleet.json(slot, "/v1/hash")).collect();
        let level = hashes.len() == fleet.count()
            && hashes.iter().all(|hash| hash["applied_index"] == hashes[0]["applied_index"]);
        if level {
            break hashes;
        }
        if Instant::now() > deadline {
            return Err(format!("not level within {HEAL_WITHIN:?}: {hashes:?}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if hashes.iter().any(|hash| *hash != hashes[0]) {
        return Err(format!("the members differ: {hashes:?}"));
    }
    let mut state = State::empty();
    state.replay(log);
    for slot in 0..fleet.count() {
        let listed = listing(fleet, slot)?;
        if listed != state {
            let wrong = state.keys.iter().find(|(key, version)| listed.keys.get(*key) != Some(version));
            let name = fleet.name(slot);
            return Err(format!(
                "{name} lists {} keys at revision {}, the account has {} at {}; first that differs: {wrong:?}",
                listed.keys.len(),
                listed.revision,
                state.keys.len(),
                state.revision
            ));
        }
    }
    Ok(hashes[0]["hash"].as_str().unwrap_or_default().to_owned())
}

/// What one member by itself has.
fn listing(fleet: &Fleet, slot: usize) -> Result<State, String> {
    let mut state = State::default();
    let mut cursor = String::new();
    loop {
        let target = format!("/v1/kv?prefix=&limit=1000&consistency=stale{cursor}");
        let page = eventually("a member lists what it has", HEAL_WITHIN, || fleet.json(slot, &target));
        state.revision = page["revision"].as_i64().ok_or("no revision")?;
        for item in page["items"].as_array().ok_or("no items")? {
            let text = |name: &str| item[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name}: {item}"));
            let revision = item["mod_revision"].as_i64().ok_or("no mod_revision")?;
            state.keys.insert(text("key")?, (revision, text("value")?));
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(life: u64, call: u64, returned: u64, revision: i64) -> Sight {
        Sight { life, call, returned, revision }
    }

    #[test]
    fn a_process_that_goes_back_is_found() {
        let fine = [sight(1, 0, 10, 5), sight(1, 5, 20, 4), sight(1, 21, 30, 5), sight(2, 40, 50, 3)];
        assert_eq!(never_back(&fine), None);
        let bad = [sight(1, 0, 10, 5), sight(1, 11, 20, 4)];
        assert!(never_back(&bad).is_some());
    }

    #[test]
    fn a_watch_that_tells_otherwise_is_found() {
        let change = |value: &str| BTreeMap::from([("k".to_owned(), Some(value.to_owned()))]);
        let log: Log = (2..10).map(|revision| (revision, change(&format!("v{revision}")))).collect();
        let tell = |after: i64, upto: i64, told: &Log| Heard { slot: 0, after, upto, digest: digest(told.iter()) };
        let part = |from: i64, to: i64| log.range(from..=to).map(|(at, change)| (*at, change.clone())).collect::<Log>();
        assert_eq!(
            told_truly(&[tell(1, 4, &part(2, 4)), tell(4, 9, &part(5, 9)), tell(9, 30, &Log::new())], &log),
            None
        );
        assert!(told_truly(&[tell(1, 4, &part(2, 3))], &log).is_some(), "lost");
        assert!(told_truly(&[tell(4, 6, &part(4, 6))], &log).is_some(), "told twice");
        let mut other = part(2, 4);
        other.insert(3, change("x"));
        assert!(told_truly(&[tell(1, 4, &other)], &log).is_some(), "another value");
    }
}
