//! Watches: each stream is ordered, without a repetition or a gap, all events of a revision together, only
//! what was asked for, with the true former states; and a bookmark is never ahead of the events.

use super::replay::{Replay, same_event};
use crate::ledger::{Book, Said, Stream};
use tenure::model::{Event, KeyRange, KeyValue, Revision, RevisionEvents};

pub(crate) fn check(book: &Book, replay: &Replay) -> Vec<String> {
    book.streams.iter().filter_map(|stream| judge(stream, book, replay)).collect()
}

/// The first revision after `after` that has anything for the stream.
fn due(book: &Book, range: &KeyRange, after: Revision) -> Option<(Revision, Vec<Event>)> {
    book.told.range(after + 1..).find_map(|(revision, told)| {
        let events: Vec<Event> =
            told.events.events.iter().filter(|event| range.shows(&event.kv.key)).cloned().collect();
        (!events.is_empty()).then_some((*revision, events))
    })
}

fn judge(stream: &Stream, book: &Book, replay: &Replay) -> Option<String> {
    let who = &stream.who;
    let mut position = stream.after;
    for said in &stream.said {
        let due = due(book, &stream.range, position);
        match said {
            Said::Progress(revision) => {
                if *revision < position {
                    return Some(format!("watch: {who} was told of progress to {revision} after {position}"));
                }
                if let Some((next, _)) = due.filter(|(next, _)| next <= revision) {
                    return Some(format!(
                        "watch: {who} was told of progress to {revision} before the events of {next}"
                    ));
                }
                position = *revision;
            }
            Said::Change { events, previous } => {
                let Some((next, wanted)) = due else {
                    return Some(format!(
                        "watch: {who} was told of {} after {position}, and there is nothing",
                        events.revision
                    ));
                };
                if events.revision != next {
                    return Some(format!(
                        "watch: {who} was told of {} after {position}, due was {next}",
                        events.revision
                    ));
                }
                let same = events.events.len() == wanted.len()
                    && events.events.iter().zip(&wanted).all(|(one, other)| same_event(one, other));
                if !same {
                    let (told, due) = (events.events.len(), wanted.len());
                    return Some(format!("watch: {who} was told {told} events of {next}, and they are not its {due}"));
                }
                if let Some(wrong) = former(events, previous, replay) {
                    return Some(format!("watch: {who} was told a wrong former state at {next}: {wrong}"));
                }
                position = next;
            }
        }
    }
    None
}

fn former(events: &RevisionEvents, previous: &[Option<KeyValue>], replay: &Replay) -> Option<String> {
    events.events.iter().zip(previous).find_map(|(event, told)| {
        let true_one = replay.at(&event.kv.key, events.revision - 1);
        // Compacted ones are left out, and a revision of before the stream's store is not known here.
        let told = told.as_ref()?;
        let same = true_one.is_some_and(|kv| kv.mod_revision == told.mod_revision && kv.value == told.value);
        (!same).then(|| format!("{:?} instead of {:?}", told.value, true_one.map(|kv| &kv.value)))
    })
}
