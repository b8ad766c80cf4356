//! Reading queues of claims.

use super::{Claim, ClaimQueue};
use crate::machine::View;
use crate::model::claim::{holders, permits};
use crate::model::{
    Caller, ClaimKind, ClaimName, Delimiter, Failure, KeyRange, KeyValue, LeaseId, ListOp, RangeOp, RangeSort,
    Rejection, Revision, SortOrder, limits,
};
use crate::service::{Answer, Context, ReadOptions, Service};
use bytes::Bytes;

#[derive(Debug, Clone)]
pub struct ClaimList {
    pub kind: ClaimKind,
    pub name_prefix: String,
    pub limit: u64,
    /// Where an earlier page ended.
    pub resume: Option<Bytes>,
}

#[derive(Debug, Clone)]
pub struct ClaimPage {
    pub items: Vec<ClaimQueue>,
    pub next: Option<Bytes>,
}

/// Where a claim stands in its queue.
pub(super) enum Standing {
    Holds,
    /// Not before the claim at this key is gone. Of a semaphore it is the last one before, which may go later than
    /// needed: any deletion may let it in.
    Behind(Bytes),
    Gone,
}

impl Service {
    pub async fn claim_queue(
        &self,
        context: &Context,
        read: ReadOptions,
        of: &ClaimName,
    ) -> Result<Answer<ClaimQueue>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let queue = self.queue_in(&view, &context.caller, of)?;
        Ok(self.answer(header, queue, false))
    }

    /// Queues by name. A lock or election that nobody claims is not listed; a semaphore is as long as its
    /// limit is kept.
    pub async fn claim_queues(
        &self,
        context: &Context,
        read: ReadOptions,
        list: ClaimList,
    ) -> Result<Answer<ClaimPage>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let root = list.kind.root();
        let listing = ListOp {
            range: KeyRange::prefix(ClaimName::new(list.kind, list.name_prefix).base()),
            resume: list.resume,
            revision: 0,
            limit: list.limit,
            bytes_max: limits::LIST_PAGE_BYTES_MAX,
            keys_only: true,
            count: false,
            count_only: false,
            delimiter: Some(Delimiter { bytes: Bytes::from_static(b"/"), prefix_len: root.len() }),
            modified_after: None,
            order: SortOrder::Ascending,
            sort: RangeSort::Key,
        };
        let page = view.list(&context.caller, &listing)?;
        let keys: Vec<Bytes> = match list.kind {
            ClaimKind::Semaphore => page.items.into_iter().map(|kv| kv.key).collect(),
            ClaimKind::Lock | ClaimKind::Election => page.prefixes,
        };
        let names = keys.iter().filter_map(|key| ClaimName::of_key(list.kind, key));
        let items = names.map(|(of, _)| self.queue_in(&view, &context.caller, &of)).collect::<Result<_, _>>()?;
        Ok(self.answer(header, ClaimPage { items, next: page.next }, false))
    }

    pub(super) fn queue_in(&self, view: &View, caller: &Caller, of: &ClaimName) -> Result<ClaimQueue, Failure> {
        let (limit, sorted) = sorted(view, caller, of)?;
        let holding = holders(of, limit.unwrap_or(0), &sorted);
        let claims = sorted.iter().enumerate().map(|(position, kv)| self.claim_of(view, of, kv, (position, holding)));
        Ok(ClaimQueue { of: of.clone(), limit, claims: claims.collect(), revision: view.revision() })
    }

    fn claim_of(&self, view: &View, of: &ClaimName, kv: &KeyValue, (position, holding): (usize, usize)) -> Claim {
        let lease = view.lease(kv.lease);
        Claim {
            of: of.clone(),
            key: kv.key.clone(),
            held: position < holding,
            position: u64::try_from(position).unwrap_or(u64::MAX),
            token: kv.create_revision,
            lease: kv.lease,
            label: lease.as_ref().and_then(|lease| lease.label.as_deref().cloned()).unwrap_or_default(),
            value: kv.value.clone(),
            permits: if of.kind == ClaimKind::Semaphore { permits(&kv.value) } else { 1 },
            ttl_ms: lease.map_or(0, |lease| lease.ttl_ms),
            remaining_ms: self.lease_left_ms(kv.lease),
        }
    }
}

/// A semaphore's limit, and all claims by token.
fn sorted(view: &View, caller: &Caller, of: &ClaimName) -> Result<(Option<u64>, Vec<KeyValue>), Failure> {
    let range = RangeOp { sort: RangeSort::Create, ..RangeOp::newest(of.claims()) };
    let sorted = view.range(caller, &range)?.kvs;
    let limit = match of.kind {
        ClaimKind::Semaphore => view.get(caller, &of.base(), 0)?,
        ClaimKind::Lock | ClaimKind::Election => None,
    };
    let limit = limit.and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
    Ok((limit, sorted))
}

/// Where the claim with this key and token stands.
pub(super) fn standing(
    view: &View,
    caller: &Caller,
    of: &ClaimName,
    (key, token): (&Bytes, Revision),
) -> Result<Standing, Failure> {
    if view.get(caller, key, 0)?.is_none_or(|kv| kv.create_revision != token) {
        return Ok(Standing::Gone);
    }
    if of.kind == ClaimKind::Semaphore {
        let (limit, sorted) = sorted(view, caller, of)?;
        let at = sorted.iter().position(|kv| kv.key == *key).unwrap_or(sorted.len());
        let last_before = at.checked_sub(1).and_then(|before| sorted.get(before)).map(|kv| kv.key.clone());
        return Ok(match last_before {
            _ if at < holders(of, limit.unwrap_or(0), &sorted) => Standing::Holds,
            Some(before) => Standing::Behind(before),
            // More permits than the limit: refused before it is queued, but a foreign client may do it.
            None => Standing::Behind(key.clone()),
        });
    }
    let before = RangeOp {
        max_create_revision: token - 1,
        sort: RangeSort::Create,
        order: SortOrder::Descending,
        limit: 1,
        keys_only: true,
        ..RangeOp::newest(of.claims())
    };
    let before = view.range(caller, &before)?.kvs.into_iter().next();
    Ok(before.map_or(Standing::Holds, |kv| Standing::Behind(kv.key)))
}

/// Why a claim is not there any more.
pub(super) fn gone(view: &View, of: &ClaimName, lease: LeaseId) -> Failure {
    match view.lease(lease) {
        None => Rejection::LeaseNotFound(lease).into(),
        Some(_) => Rejection::ClaimNotFound { of: of.clone(), lease }.into(),
    }
}
