//! Locks: tokens rise from one grant to the next; what an older holder writes under its token is refused
//! once a later one has written; and nobody is told that it holds by a member that did not know, when
//! its turn came, that the claim had ended long before.

use super::replay::Replay;
use crate::ledger::{Book, Grant};
use bytes::Bytes;
use std::collections::BTreeMap;
use tenure::model::EventKind;

/// Keys written only under a fence, with the token as their value.
pub(crate) const GUARDED: &[u8] = b"guarded/";

pub(crate) fn check(book: &Book, replay: &Replay) -> Vec<String> {
    let mut found = guarded(book);
    for (at, grant) in book.grants.iter().enumerate() {
        found.extend(judge(grant, book, replay));
        for earlier in book.grants[..at].iter().chain(&book.grants[at + 1..]) {
            if earlier.of == grant.of && earlier.told_us < grant.asked_us && earlier.token >= grant.token {
                let (before, after) = (earlier.token, grant.token);
                found.push(format!("locks: {} was granted with token {before} and later with {after}", grant.of));
            }
        }
    }
    found
}

fn guarded(book: &Book) -> Vec<String> {
    let mut newest: BTreeMap<Bytes, i64> = BTreeMap::new();
    let mut found = Vec::new();
    for told in book.told.values() {
        let puts = told.events.events.iter().filter(|event| event.kind == EventKind::Put);
        for event in puts.filter(|event| event.kv.key.starts_with(GUARDED)) {
            let token: i64 = String::from_utf8_lossy(&event.kv.value).parse().unwrap_or(0);
            let newest = newest.entry(event.kv.key.clone()).or_insert(token);
            if token < *newest {
                found.push(format!("locks: token {token} wrote {:?} after token {newest}", event.kv.key));
            }
            *newest = token.max(*newest);
        }
    }
    found
}

fn judge(grant: &Grant, book: &Book, replay: &Replay) -> Option<String> {
    let Grant { of, key, token, member, revision, asked_us, told_us } = grant;
    if replay.at(key, *revision).is_none_or(|kv| kv.create_revision != *token) {
        return Some(format!("locks: {of} was granted with token {token} at {revision}, where there is no such claim"));
    }
    let claims = replay.range_at(&of.claims(), *revision);
    if let Some(first) = claims.iter().map(|kv| kv.create_revision).min().filter(|first| first < token) {
        return Some(format!("locks: {of} was granted with token {token} at {revision}, where {first} is before it"));
    }
    // Its turn came with the last deletion before it; whoever confirms it after having applied that must
    // know of every end of the claim that was applied anywhere by then.
    let turn = replay.deletions_before(&of.claims(), *token).into_iter().max()?;
    let turn_us = *book.local_us.get(&(*member, turn))?;
    let ended = replay.deleted_after(key, *token)?;
    let ended_us = book.told.get(&ended)?.first_us;
    (*revision >= turn && ended_us < turn_us).then(|| {
        format!(
            "locks: member {member} granted {of} with token {token} at {revision}, asked at {asked_us} us and told at {told_us}, whose claim had ended with {ended} at {ended_us} before its turn, {turn}, was known there at {turn_us}",
        )
    })
}
