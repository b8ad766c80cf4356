//! What happened, and whether a watch tells it: the nine rules of a watch, and completeness across reconnects.
//!
//! The record is proved from within: every revision of the store changed some key, so a record that misses
//! none is complete; versions, creations and former values follow from what came before. Each stream is then
//! held against it: no event that was not asked for, none twice, none out of order, no revision in two
//! pieces, nothing left out between two words of the stream, no bookmark ahead of an event.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The keys that are written: `GROUPS` prefixes with `KEYS` keys each.
pub(super) const GROUPS: usize = 40;
pub(super) const KEYS: usize = 5;
pub(super) const ALL_KEYS: usize = GROUPS * KEYS;

pub(super) fn key_name(key: usize) -> String {
    format!("g{:02}/k{}", key / KEYS, key % KEYS)
}

fn key_of(name: &str) -> Option<usize> {
    let (group, key) = name.strip_prefix('g')?.split_once("/k")?;
    let (group, key): (usize, usize) = (group.parse().ok()?, key.parse().ok()?);
    (group < GROUPS && key < KEYS).then_some(group * KEYS + key)
}

/// A line of a stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) revision: i64,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) version: i64,
    pub(super) create_revision: i64,
    pub(super) created: bool,
    pub(super) previous: Option<Former>,
    pub(super) reason: String,
    pub(super) initial: bool,
    pub(super) partial: bool,
    pub(super) code: String,
    pub(super) compacted_revision: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Former {
    pub(super) value: String,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) create_revision: i64,
}

/// One key's state after a change; `None` if it is gone.
type State = Option<Former>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) key: usize,
    pub(super) after: State,
    /// Of a delete.
    pub(super) reason: String,
}

/// All changes, by revision, without a gap.
#[derive(Debug, Default)]
pub(super) struct Record {
    first: i64,
    revisions: Vec<Vec<Event>>,
    states: BTreeMap<usize, Vec<(i64, State)>>,
    /// Up to where history may have been taken away.
    pub(super) compacted: i64,
}

impl Record {
    /// Everything after this revision will be told.
    pub(super) fn after(first: i64) -> Self {
        Self { first, ..Self::default() }
    }

    pub(super) fn last(&self) -> i64 {
        self.first + i64::try_from(self.revisions.len()).unwrap()
    }

    pub(super) fn at(&self, revision: i64) -> &[Event] {
        let at = usize::try_from(revision - self.first - 1).ok().and_then(|at| self.revisions.get(at));
        at.map_or(&[], Vec::as_slice)
    }

    fn state(&self, key: usize, at: i64) -> Option<&Former> {
        let states = self.states.get(&key)?;
        let upto = states.partition_point(|(revision, _)| *revision <= at);
        states[..upto].last().and_then(|(_, state)| state.as_ref())
    }

    /// Takes over what a stream of everything says of one revision.
    pub(super) fn append(&mut self, lines: &[Line]) -> Result<(), String> {
        let Some(revision) = lines.first().map(|line| line.revision) else { return Ok(()) };
        let events: Vec<Event> = lines.iter().map(event).collect::<Result<_, _>>()?;
        if revision <= self.last() {
            let known = self.at(revision);
            return if known == events {
                Ok(())
            } else {
                Err(format!("{revision} is {events:?} here, {known:?} there"))
            };
        }
        if revision != self.last() + 1 {
            return Err(format!("{} is missing, {revision} follows {}", self.last() + 1, self.last()));
        }
        for (event, line) in events.iter().zip(lines) {
            let before = self.state(event.key, revision - 1).cloned();
            follows(revision, event, before.as_ref()).map_err(|wrong| format!("{wrong}: {line:?}"))?;
            former(self, event.key, line)?;
            if let Some(states) = self.states.get(&event.key)
                && states.last().is_some_and(|(last, _)| *last == revision)
            {
                return Err(format!("{} changes twice in {revision}", key_name(event.key)));
            }
            self.states.entry(event.key).or_default().push((revision, event.after.clone()));
        }
        self.revisions.push(events);
        Ok(())
    }
}

fn event(line: &Line) -> Result<Event, String> {
    let key = key_of(&line.key).ok_or_else(|| format!("a key that nobody writes: {line:?}"))?;
    let after = match line.kind.as_str() {
        "put" if line.created == (line.version == 1) => Some(Former {
            value: line.value.clone(),
            mod_revision: line.revision,
            version: line.version,
            create_revision: line.create_revision,
        }),
        "delete" if ["deleted", "expired", "lease_revoked"].contains(&line.reason.as_str()) => None,
        _ => return Err(format!("no event: {line:?}")),
    };
    Ok(Event { key, after, reason: line.reason.clone() })
}

/// Whether a change can come after that state.
fn follows(revision: i64, event: &Event, before: Option<&Former>) -> Result<(), &'static str> {
    match (before, &event.after) {
        (None, None) => Err("deletes what is not there"),
        (None, Some(after)) if (after.version, after.create_revision) != (1, revision) => Err("is no creation"),
        (Some(before), Some(after))
            if (after.version, after.create_revision) != (before.version + 1, before.create_revision) =>
        {
            Err("does not follow the version before")
        }
        _ => Ok(()),
    }
}

/// A former value is exact, or is missing because history was taken away.
fn former(record: &Record, key: usize, line: &Line) -> Result<(), String> {
    let before = record.state(key, line.revision - 1);
    match (&line.previous, before) {
        (None, None) => Ok(()),
        (None, Some(before)) if before.mod_revision < record.compacted => Ok(()),
        (Some(told), Some(before)) if told == before => Ok(()),
        (told, before) => Err(format!("previous {told:?} instead of {before:?}: {line:?}")),
    }
}

/// One stream: what it follows, and how far it has told everything.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) wanted: Vec<bool>,
    pub(super) puts: bool,
    pub(super) deletes: bool,
    /// Former values were asked for.
    pub(super) prev: bool,
    pub(super) position: i64,
    /// Events of a revision whose last has not come.
    partial: Vec<Line>,
    /// The state that is being told.
    listing: Option<BTreeMap<usize, Former>>,
    pub(super) events: u64,
    pub(super) bookmarks: u64,
    pub(super) gaps: u64,
}

impl Follower {
    pub(super) fn new(wanted: Vec<bool>, position: i64) -> Self {
        Self {
            wanted,
            puts: true,
            deletes: true,
            prev: false,
            position,
            partial: Vec::new(),
            listing: None,
            events: 0,
            bookmarks: 0,
            gaps: 0,
        }
    }

    /// A new connection: half a revision counts for nothing. With `listing` the state comes first.
    pub(super) fn connected(&mut self, listing: bool) {
        self.partial.clear();
        self.listing = listing.then(BTreeMap::new);
    }

    fn wants(&self, event: &Event) -> bool {
        self.wanted[event.key] && if event.after.is_some() { self.puts } else { self.deletes }
    }

    /// What is due first after the position, up to `upto`.
    fn due<'a>(&self, record: &'a Record, upto: i64) -> Option<(i64, Vec<&'a Event>)> {
        (self.position + 1..=upto.min(record.last())).find_map(|revision| {
            let events: Vec<&Event> = record.at(revision).iter().filter(|event| self.wants(event)).collect();
            (!events.is_empty()).then_some((revision, events))
        })
    }

    /// Everything up to this revision is said to have been told.
    fn reach(&mut self, record: &Record, revision: i64) -> Result<(), String> {
        if revision < self.position {
            return Err(format!("back from {} to {revision}", self.position));
        }
        if !self.partial.is_empty() {
            return Err(format!("{revision} in the middle of a revision"));
        }
        if let Some((due, events)) = self.due(record, revision) {
            return Err(format!("{revision} was reached without {due}: {events:?}"));
        }
        self.position = revision;
        Ok(())
    }

    /// Judges the next line. The record reaches at least to its revision.
    pub(super) fn told(&mut self, record: &Record, line: Line) -> Result<(), String> {
        match line.kind.as_str() {
            "put" if line.initial => self.listed(&line),
            "put" | "delete" => self.changed(record, line),
            "bookmark" if self.listing.is_some() => Err("a bookmark in a listing".to_owned()),
            "bookmark" => {
                self.bookmarks += 1;
                self.reach(record, line.revision)
            }
            "synced" => self.synced(record, line.revision),
            "reset" if record.compacted > self.position && line.revision >= record.compacted.min(self.position) => {
                self.gaps += 1;
                self.connected(true);
                Ok(())
            }
            "problem" if line.code == "compacted" => self.compacted(record, line.compacted_revision),
            _ => Err(format!("what is this: {line:?}")),
        }
    }

    /// What comes next was taken away: true only of what was.
    pub(super) fn compacted(&mut self, record: &Record, compacted: i64) -> Result<(), String> {
        if compacted <= self.position || compacted > record.compacted {
            return Err(format!("compacted at {compacted}, at {} of {}", self.position, record.compacted));
        }
        self.gaps += 1;
        self.partial.clear();
        self.position = compacted;
        Ok(())
    }

    fn listed(&mut self, line: &Line) -> Result<(), String> {
        let key =
            key_of(&line.key).filter(|key| self.wanted[*key]).ok_or_else(|| format!("not asked for: {line:?}"))?;
        let Some(listing) = &mut self.listing else { return Err(format!("listed outside a listing: {line:?}")) };
        let (value, mod_revision) = (line.value.clone(), line.revision);
        let (version, create_revision) = (line.version, line.create_revision);
        match listing.insert(key, Former { value, mod_revision, version, create_revision }) {
            None => Ok(()),
            Some(_) => Err(format!("listed twice: {line:?}")),
        }
    }

    fn synced(&mut self, record: &Record, revision: i64) -> Result<(), String> {
        let Some(listing) = self.listing.take() else { return Err("synced without a listing".to_owned()) };
        if revision < self.position {
            return Err(format!("listed at {revision}, after {}", self.position));
        }
        let keys = (0..ALL_KEYS).filter(|key| self.wanted[*key]);
        let state: BTreeMap<usize, Former> =
            keys.filter_map(|key| Some((key, record.state(key, revision)?.clone()))).collect();
        if listing != state {
            return Err(format!("at {revision} the state is {state:?}, told was {listing:?}"));
        }
        self.position = revision;
        Ok(())
    }

    fn changed(&mut self, record: &Record, line: Line) -> Result<(), String> {
        if self.listing.is_some() {
            return Err(format!("a change in a listing: {line:?}"));
        }
        if line.revision <= self.position {
            return Err(format!("told after {}: {line:?}", self.position));
        }
        if self.partial.last().is_some_and(|last| last.revision != line.revision) {
            return Err(format!("in the middle of another revision: {line:?}"));
        }
        let (partial, revision) = (line.partial, line.revision);
        self.partial.push(line);
        if partial {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.partial);
        let told: Vec<Event> = lines.iter().map(event).collect::<Result<_, _>>()?;
        match self.due(record, revision) {
            Some((due, events)) if due == revision && events.iter().copied().eq(&told) => {}
            due => return Err(format!("{revision} is told as {told:?}, due is {due:?}")),
        }
        if self.prev {
            lines.iter().zip(&told).try_for_each(|(line, event)| former(record, event.key, line))?;
        } else if lines.iter().any(|line| line.previous.is_some()) {
            return Err(format!("a former value that nobody asked for: {lines:?}"));
        }
        self.events += u64::try_from(lines.len()).unwrap();
        self.position = revision;
        Ok(())
    }
}

/// A checker that accepts a broken stream proves nothing.
mod self_test {
    use super::*;

    fn put(revision: i64, key: usize, version: i64, create_revision: i64) -> Line {
        let created = version == 1;
        let (key, value) = (key_name(key), format!("v{revision}"));
        let kind = "put".to_owned();
        Line { kind, revision, key, value, version, create_revision, created, ..Line::default() }
    }

    fn delete(revision: i64, key: usize) -> Line {
        let (kind, reason) = ("delete".to_owned(), "deleted".to_owned());
        Line { kind, revision, key: key_name(key), reason, ..Line::default() }
    }

    fn mark(kind: &str, revision: i64) -> Line {
        Line { kind: kind.to_owned(), revision, ..Line::default() }
    }

    fn previous(line: Line, revision: i64, version: i64, create_revision: i64) -> Line {
        let former = Former { value: format!("v{revision}"), mod_revision: revision, version, create_revision };
        Line { previous: Some(former), ..line }
    }

    fn partial(line: Line) -> Line {
        Line { partial: true, ..line }
    }

    /// 2: put 0; 3: put 0, put 7; 4: delete 0; 5: put 9.
    fn good() -> Vec<Line> {
        vec![
            put(2, 0, 1, 2),
            partial(previous(put(3, 0, 2, 2), 2, 1, 2)),
            put(3, 7, 1, 3),
            previous(delete(4, 0), 3, 2, 2),
            put(5, 9, 1, 5),
            mark("bookmark", 5),
        ]
    }

    fn record() -> Record {
        let lines = good();
        let mut record = Record::after(1);
        for lines in [&lines[..1], &lines[1..3], &lines[3..4], &lines[4..5]] {
            record.append(lines).unwrap();
        }
        record
    }

    fn judge(wanted: &[usize], lines: Vec<Line>) -> Result<(), String> {
        let (record, wanted) = (record(), (0..ALL_KEYS).map(|key| wanted.contains(&key)).collect());
        let mut follower = Follower { prev: true, ..Follower::new(wanted, 1) };
        lines.into_iter().try_for_each(|line| follower.told(&record, line))
    }

    #[test]
    fn a_good_stream_is_accepted_and_each_broken_one_refused() {
        const ALL: &[usize] = &[0, 7, 9];
        judge(ALL, good()).unwrap();
        judge(&[7], vec![put(3, 7, 1, 3), mark("bookmark", 4), mark("bookmark", 5)]).unwrap();
        let mut broken: Vec<(&str, Vec<Line>)> = Vec::new();
        let mut with = |what, change: &dyn Fn(&mut Vec<Line>)| {
            let mut lines = good();
            change(&mut lines);
            broken.push((what, lines));
        };
        with("a gap", &|lines| drop(lines.remove(3)));
        with("a gap at the end", &|lines| drop(lines.remove(4)));
        with("a duplicate", &|lines| lines.insert(1, put(2, 0, 1, 2)));
        with("out of order", &|lines| lines.swap(3, 4));
        with("half a revision", &|lines| drop(lines.remove(2)));
        with("a revision in two pieces", &|lines| lines[1].partial = false);
        with("a revision that never ends", &|lines| lines[2].partial = true);
        with("an early bookmark", &|lines| lines.insert(3, mark("bookmark", 4)));
        with("a bookmark inside a revision", &|lines| lines.insert(2, mark("bookmark", 2)));
        with("a bookmark that goes back", &|lines| lines.push(mark("bookmark", 4)));
        with("an event after its bookmark", &|lines| lines.push(put(5, 9, 1, 5)));
        with("another value", &|lines| lines[2].value = "x".to_owned());
        with("no creation", &|lines| lines[2].created = false);
        with("another former value", &|lines| lines[3].previous.as_mut().unwrap().value = "x".to_owned());
        with("no former value", &|lines| lines[3].previous = None);
        with("another reason", &|lines| lines[3].reason = "expired".to_owned());
        with("a phantom", &|lines| lines.push(put(6, 9, 2, 5)));
        with("a gap that nobody made", &|lines| {
            lines.insert(1, Line { code: "compacted".to_owned(), compacted_revision: 3, ..mark("problem", 5) });
        });
        for (what, lines) in broken {
            assert!(judge(ALL, lines).is_err(), "{what} was accepted");
        }
        assert!(judge(&[7], vec![put(2, 0, 1, 2)]).is_err(), "what was not asked for was accepted");
        assert!(judge(&[0], vec![put(2, 0, 1, 2), mark("bookmark", 3)]).is_err(), "an early bookmark was accepted");
    }

    #[test]
    fn a_record_with_a_hole_or_two_tellings_is_refused() {
        assert!(record().append(&[put(7, 0, 1, 7)]).is_err(), "a hole");
        assert!(record().append(&[put(6, 0, 2, 2)]).is_err(), "a version that does not follow");
        assert!(record().append(&[delete(6, 0)]).is_err(), "a delete of nothing");
        assert!(record().append(&[put(5, 8, 1, 5)]).is_err(), "members that differ");
        record().append(&[put(5, 9, 1, 5)]).unwrap();
    }

    #[test]
    fn a_listing_is_the_state_at_its_revision() {
        let (record, wanted) = (record(), vec![true; ALL_KEYS]);
        let listed = |lines: Vec<Line>| {
            let mut follower = Follower::new(wanted.clone(), 1);
            follower.connected(true);
            lines.into_iter().try_for_each(|line| follower.told(&record, line))
        };
        let initial = |line| Line { initial: true, ..line };
        listed(vec![initial(put(3, 7, 1, 3)), initial(put(3, 0, 2, 2)), mark("synced", 3)]).unwrap();
        assert!(listed(vec![initial(put(3, 7, 1, 3)), mark("synced", 3)]).is_err(), "an entry is missing");
        assert!(listed(vec![initial(put(3, 7, 1, 3)), initial(put(2, 0, 1, 2)), mark("synced", 3)]).is_err(), "stale");
        assert!(listed(vec![initial(put(3, 7, 1, 3)), initial(put(3, 0, 2, 2)), mark("synced", 4)]).is_err(), "late");
    }
}
