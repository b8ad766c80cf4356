//! Claims and their queues as JSON.

use crate::api::json::Writer;
use crate::model::ClaimKind;
use crate::service::claims::{Claim, ClaimQueue};

pub(super) fn claim(json: &mut Writer, claim: &Claim) {
    json.open();
    json.text("name", &claim.of.name);
    json.text("kind", claim.of.kind.singular());
    json.text("state", if claim.held { "held" } else { "waiting" });
    json.count("position", claim.position);
    json.int("token", claim.token);
    json.text("lease", &format!("{:016x}", claim.lease));
    if let Some(owner) = &claim.label.name {
        json.text("owner", owner);
    }
    match claim.of.kind {
        ClaimKind::Lock => {}
        ClaimKind::Semaphore => json.count("permits", claim.permits),
        ClaimKind::Election => json.bytes("value", "value_base64", &claim.value),
    }
    if let Some(metadata) = &claim.label.metadata {
        json.raw("metadata", metadata);
    }
    json.count("ttl_ms", claim.ttl_ms);
    if let Some(remaining_ms) = claim.remaining_ms {
        json.count("remaining_ms", remaining_ms);
    }
    json.close();
}

fn claims<'a>(json: &mut Writer, name: &str, all: impl Iterator<Item = &'a Claim>) {
    json.name(name);
    json.open_list();
    all.for_each(|one| claim(json, one));
    json.close_list();
}

pub(super) fn queue(json: &mut Writer, queue: &ClaimQueue) {
    json.open();
    json.text("name", &queue.of.name);
    match queue.of.kind {
        ClaimKind::Lock => {
            let holder = queue.holders().next();
            json.bool("held", holder.is_some());
            if let Some(holder) = holder {
                json.name("holder");
                claim(json, holder);
            }
            claims(json, "waiters", queue.waiters());
        }
        ClaimKind::Semaphore => {
            if let Some(limit) = queue.limit {
                json.count("limit", limit);
            }
            json.count("used", queue.holders().map(|holder| holder.permits).sum());
            claims(json, "holders", queue.holders());
            claims(json, "waiters", queue.waiters());
        }
        ClaimKind::Election => {
            json.name("leader");
            match queue.holders().next() {
                Some(leader) => claim(json, leader),
                None => json.item_raw(b"null"),
            }
            claims(json, "candidates", queue.waiters());
        }
    }
    json.int("revision", queue.revision);
    json.close();
}
