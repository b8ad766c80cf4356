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
    /// Not before one of the claims at these keys is gone. Of a semaphore they are the nearest ones before it
    /// that leave too few permits: whoever gives up a permit wakes only the one who can have it.
    Behind(Vec<Bytes>),
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
        self.queue_at(view, caller, of, view.revision())
    }

    /// As the queue was at a revision, with what is left of its leases now.
    pub(super) fn queue_at(
        &self,
        view: &View,
        caller: &Caller,
        of: &ClaimName,
        revision: Revision,
    ) -> Result<ClaimQueue, Failure> {
        let (limit, sorted) = sorted(view, caller, of, revision)?;
        let holding = holders(of, limit.unwrap_or(0), &sorted);
        let claims = sorted.iter().enumerate().map(|(position, kv)| self.claim_of(view, of, kv, (position, holding)));
        Ok(ClaimQueue { of: of.clone(), limit, claims: claims.collect(), revision })
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
fn sorted(
    view: &View,
    caller: &Caller,
    of: &ClaimName,
    revision: Revision,
) -> Result<(Option<u64>, Vec<KeyValue>), Failure> {
    let range = RangeOp { revision, sort: RangeSort::Create, ..RangeOp::newest(of.claims()) };
    let sorted = view.range(caller, &range)?.kvs;
    let limit = match of.kind {
        ClaimKind::Semaphore => view.get(caller, &of.base(), revision)?,
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
        let (limit, sorted) = sorted(view, caller, of, view.revision())?;
        let at = sorted.iter().position(|kv| kv.key == *key).unwrap_or(sorted.len());
        let limit = limit.unwrap_or(0);
        let waits = at >= holders(of, limit, &sorted);
        return Ok(if waits { Standing::Behind(in_the_way(limit, &sorted, at)) } else { Standing::Holds });
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
    Ok(before.map_or(Standing::Holds, |kv| Standing::Behind(vec![kv.key])))
}

/// The nearest claims before the one at `at` with which it cannot hold, as long as all of them are there. None if
/// it asks for more than the limit: refused before it is queued, but a foreign client may do it.
fn in_the_way(limit: u64, sorted: &[KeyValue], at: usize) -> Vec<Bytes> {
    let mut used = sorted.get(at).map_or(1, |own| permits(&own.value));
    let mut keys = Vec::new();
    for before in sorted[..at.min(sorted.len())].iter().rev() {
        if used > limit {
            break;
        }
        used = used.saturating_add(permits(&before.value));
        keys.push(before.key.clone());
    }
    keys
}

/// Why a claim is not there any more.
pub(super) fn gone(view: &View, of: &ClaimName, lease: LeaseId) -> Failure {
    match view.lease(lease) {
        None => Rejection::LeaseNotFound(lease).into(),
        Some(_) => Rejection::ClaimNotFound { of: of.clone(), lease }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(at: usize, permits: u64) -> KeyValue {
        KeyValue {
            key: format!("{at}").into(),
            value: permits.to_string().into(),
            value_size: 0,
            content_type: None,
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 1,
        }
    }

    #[test]
    fn of_single_permits_a_release_concerns_one_waiter() {
        let queue: Vec<KeyValue> = (0..10).map(|at| claim(at, 1)).collect();
        let woken = |released: &str| -> Vec<usize> {
            (3..10).filter(|at| in_the_way(3, &queue, *at).iter().any(|key| key == released)).collect()
        };
        assert_eq!(woken("0"), [3]);
        assert_eq!(woken("2"), [3, 4, 5]);
    }

    proptest! {
        /// Whatever else is given up, nobody holds while all that it waits for is there; and somebody waits
        /// for something whenever it does not hold.
        #[test]
        fn no_release_that_lets_in_is_missed(
            wants in proptest::collection::vec(1..4_u64, 1..12), limit in 3..6_u64, gone in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let of = ClaimName::new(ClaimKind::Semaphore, "s");
            let queue: Vec<KeyValue> = wants.iter().enumerate().map(|(at, permits)| claim(at, *permits)).collect();
            for at in holders(&of, limit, &queue)..queue.len() {
                let keys = in_the_way(limit, &queue, at);
                prop_assert!(!keys.is_empty());
                let stays = |(other, kv): &(usize, &KeyValue)| *other >= at || keys.contains(&kv.key) || !gone[*other];
                let left: Vec<KeyValue> = queue.iter().enumerate().filter(stays).map(|(_, kv)| kv.clone()).collect();
                let now = left.iter().position(|kv| kv.key == queue[at].key).unwrap();
                prop_assert!(now >= holders(&of, limit, &left), "{at} of {wants:?} holds");
            }
        }
    }
}
