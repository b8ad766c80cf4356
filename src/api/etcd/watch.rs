//! etcd's `Watch`: many watches on one stream.
//!
//! One task reads the requests and follows the watches, which send into one bounded queue, in which the
//! order of each watch is kept: a change that many watches tell wakes it once. Invariants: `created` comes
//! before a watch's events and `canceled` after them; nothing is left out or split, except where the client
//! asks for fragments; a word on progress never overtakes events of any watch that it speaks for.

mod progress;
mod queue;

use super::convert::{header, key_value, key_value_of, watched};
use super::errors::{NO_LEADER, STOPPED, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::watch_create_request::FilterType;
use super::pb::etcdserverpb::watch_request::RequestUnion;
use super::pb::etcdserverpb::watch_server::Watch;
use super::pb::mvccpb;
use super::{Answers, Door, Identity};
use crate::model::limits::TIMEOUT_ETCD_MS;
use crate::model::limits::WATCHES_PER_STREAM_MAX;
use crate::model::{Caller, EventKind, Failure, Rejection, Revision};
use crate::service::{
    Change, Context, Kinds, OnCompacted, WatchGroup, WatchRequest, WatchStart, WatchStep, WatchStream,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use progress::{Bell, Told, Watches};
use prost::Message;
use queue::{Out, queue};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

/// How often the leader is looked for on behalf of a client that goes nowhere without one.
const LEADER_LOOK: Duration = Duration::from_millis(100);
/// Between looks for a watch that has not got as far as it was asked about.
const PROGRESS_AGAIN: Duration = Duration::from_millis(2);
/// How etcd names no watch at all.
const NO_WATCH: i64 = -1;
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const TOO_MANY: &str = "etcdserver: too many watches on one stream";

#[tonic::async_trait]
impl Watch for Door {
    type WatchStream = Answers<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = self.needs_leader(request.metadata());
        if needs_leader && !self.has_leader() {
            return Err(known(NO_LEADER));
        }
        let caller = Identity::of(&request);
        let (out, answers) = queue(self.service().stopping().clone());
        let (follow, followed) = mpsc::channel(1);
        // Whom nobody knows opens no watch.
        let group = self.service().watch_group(caller.clone().unwrap_or(Caller::Anonymous));
        let side = Arc::new(Side { door: self.clone(), group, watches: Watches::default(), out });
        let following = follow_all(followed, Arc::clone(&side));
        let session = Session { side, caller, follow };
        // Watches the end of the member itself, to say so.
        self.state.tasks.spawn("etcd watch stream", async move {
            tokio::select! {
                () = session.run(request.into_inner(), needs_leader) => {}
                () = following => {}
            }
        });
        Ok(Response::new(answers))
    }
}

/// Follows the watches of a stream: each by itself, and the changes of those that are up with the store together.
async fn follow_all(mut new: mpsc::Receiver<Followed>, side: Arc<Side>) {
    let mut watches = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            followed = new.recv() => match followed {
                Some(followed) => watches.push(followed.run()),
                None => return,
            },
            Some(()) = watches.next() => {}
            () = side.group.heard() => if side.read() {
                tokio::task::yield_now().await;
            },
        }
    }
}

/// What a stream and its watches share.
struct Side {
    door: Door,
    group: WatchGroup,
    watches: Watches,
    out: Out,
}

impl Side {
    /// Tells of the watches that are up with the store; true if there is more. What there is no room for, the watch
    /// itself waits with.
    fn read(&self) -> bool {
        let at = header_at(&self.door, 0);
        self.group.read(|id, changes| {
            let Some(revision) = changes.last().map(|change| change.events.revision) else { return true };
            self.watches.tell(revision);
            self.out.send_now(changed(pb::ResponseHeader { revision, ..at }, id, changes)).is_none()
        })
    }

    /// Says what is known of progress once every watch has answered; false if the client has gone.
    async fn settle(&self) -> bool {
        while let Some(revision) = self.watches.settled(|| self.group.standing()) {
            if !self.out.send(progress_of(&self.door, NO_WATCH, revision)).await {
                return false;
            }
            self.watches.again(self.door.service().header().revision);
        }
        true
    }
}

/// One stream.
struct Session {
    side: Arc<Side>,
    /// Or why no watch will be created.
    caller: Result<Caller, Failure>,
    follow: mpsc::Sender<Followed>,
}

/// The client has gone.
struct Gone;

impl Session {
    async fn run(self, mut requests: Streaming<pb::WatchRequest>, needs_leader: bool) {
        let stopping = self.side.door.service().stopping().clone();
        let leaderless = self.leaderless(needs_leader);
        tokio::pin!(leaderless);
        let mut listening = true;
        loop {
            let request = tokio::select! {
                request = requests.message(), if listening => request,
                () = self.side.out.closed() => return,
                () = &mut leaderless => return self.side.out.say_last(known(NO_LEADER)),
                () = stopping.cancelled() => return self.side.out.say_last(known(STOPPED)),
            };
            let done = match request {
                // It asks for nothing more, and still listens.
                Ok(None) => {
                    listening = false;
                    Ok(())
                }
                Ok(Some(request)) => self.asked(request).await,
                Err(_) => return,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// Ends once nobody has led for three election timeouts.
    async fn leaderless(&self, needed: bool) {
        if !needed {
            return std::future::pending().await;
        }
        let most = self.side.door.state.options.etcd.leader_patience;
        let mut missing = Duration::ZERO;
        loop {
            tokio::time::sleep(LEADER_LOOK).await;
            missing = if self.side.door.has_leader() { Duration::ZERO } else { missing + LEADER_LOOK };
            if missing >= most {
                return;
            }
        }
    }

    async fn asked(&self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                // One that is not known has ended already: nothing is said.
                if let Some(ended) = self.side.watches.cancel(cancel.watch_id) {
                    ended.cancelled().await;
                    self.side.watches.forget(cancel.watch_id);
                    self.settle().await?;
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.side.watches.ask(self.side.door.service().header().revision);
                self.settle().await
            }
            None => Ok(()),
        }
    }

    async fn send(&self, answer: pb::WatchResponse) -> Result<(), Gone> {
        if self.side.out.send(answer).await { Ok(()) } else { Err(Gone) }
    }

    async fn settle(&self) -> Result<(), Gone> {
        if self.side.settle().await { Ok(()) } else { Err(Gone) }
    }

    async fn refuse(&self, watch_id: i64, reason: &str) -> Result<(), Gone> {
        let answer = pb::WatchResponse {
            header: Some(header(&self.side.door.service().header())),
            watch_id,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..pb::WatchResponse::default()
        };
        self.send(answer).await
    }

    async fn create(&self, create: pb::WatchCreateRequest) -> Result<(), Gone> {
        let caller = match &self.caller {
            Ok(caller) => caller.clone(),
            Err(failure) => return self.refuse(NO_WATCH, self.side.door.failed(failure).message()).await,
        };
        let context = Context::new(caller, Duration::from_millis(TIMEOUT_ETCD_MS));
        let asked = create.watch_id;
        let Some(range) = watched(create.key, create.range_end) else {
            return self.refuse(NO_WATCH, EMPTY_RANGE).await;
        };
        if self.side.watches.len() >= WATCHES_PER_STREAM_MAX {
            return self.refuse(NO_WATCH, TOO_MANY).await;
        }
        let Some(id) = self.side.watches.choose(asked) else {
            return self.refuse(NO_WATCH, DUPLICATE_ID).await;
        };
        let filtered = |kind: FilterType| create.filters.contains(&i32::from(kind));
        let request = WatchRequest {
            targets: vec![range],
            start: if create.start_revision > 0 { WatchStart::At(create.start_revision) } else { WatchStart::Now },
            initial: false,
            on_compacted: OnCompacted::Fail,
            kinds: Kinds { puts: !filtered(FilterType::Noput), deletes: !filtered(FilterType::Nodelete) },
            prev: create.prev_kv,
            keys_only: false,
            progress_every: create.progress_notify.then_some(self.side.door.state.options.etcd.progress_every),
            min_revision: None,
        };
        let at = header(&self.side.door.service().header());
        let created = |watch_id| pb::WatchResponse { header: Some(at), watch_id, created: true, ..Default::default() };
        match self.side.door.service().watch(&context, request).await {
            Ok(mut answer) => {
                // What may have to be told in parts waits for room between them.
                if !create.fragment {
                    answer.body.join(&self.side.group, id);
                }
                // Before the client knows of it: no word on progress must overtake its events.
                let (bell, ended) = (Arc::new(Bell::default()), CancellationToken::new());
                self.side.watches.add(id, Arc::clone(&bell), ended.clone());
                let begins = if create.start_revision > 0 { at } else { header(&answer.header) };
                self.send(pb::WatchResponse { header: Some(begins), ..created(id) }).await?;
                let followed = Followed {
                    side: Arc::clone(&self.side),
                    id,
                    stream: answer.body,
                    fragment: create.fragment,
                    notify: create.progress_notify,
                    bell,
                    _ended: ended.drop_guard(),
                };
                self.follow.send(followed).await.map_err(|_| Gone)
            }
            Err(Failure::Rejected(Rejection::Compacted { compacted, .. })) => {
                self.send(created(id)).await?;
                self.send(compacted_away(&self.side.door, id, compacted)).await
            }
            Err(failure) => self.refuse(NO_WATCH, self.side.door.failed(&failure).message()).await,
        }
    }
}

fn header_at(door: &Door, revision: Revision) -> pb::ResponseHeader {
    let (cluster_id, member_id, raft_term) = door.service().origin();
    pb::ResponseHeader { cluster_id, member_id, revision, raft_term }
}

fn progress_of(door: &Door, watch_id: i64, revision: Revision) -> pb::WatchResponse {
    pb::WatchResponse { header: Some(header_at(door, revision)), watch_id, ..pb::WatchResponse::default() }
}

/// As etcd says it: without a revision in the header, and without a reason but the compacted revision.
fn compacted_away(door: &Door, watch_id: i64, compact_revision: Revision) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(header_at(door, 0)),
        watch_id,
        canceled: true,
        compact_revision,
        ..pb::WatchResponse::default()
    }
}

/// One watch being followed.
struct Followed {
    side: Arc<Side>,
    id: i64,
    stream: WatchStream,
    fragment: bool,
    notify: bool,
    bell: Arc<Bell>,
    /// Whoever cancels it waits for its last word.
    _ended: DropGuard,
}

impl Followed {
    async fn run(mut self) {
        loop {
            let step = tokio::select! {
                biased;
                () = self.bell.rung() => {
                    if !self.bell.ends() {
                        self.stream.request_progress();
                        continue;
                    }
                    let canceled = pb::WatchResponse {
                        header: Some(header(&self.side.door.service().header())),
                        watch_id: self.id,
                        canceled: true,
                        ..pb::WatchResponse::default()
                    };
                    self.side.out.send(canceled).await;
                    return;
                }
                step = self.stream.next() => step,
            };
            let going_on = match step {
                Some(WatchStep::Changes(changes)) => self.changes(changes).await,
                Some(WatchStep::Progress(revision)) => self.progress(revision).await,
                Some(WatchStep::Failed(failure)) => {
                    if self.failed(failure).await {
                        self.side.watches.forget(self.id);
                        self.side.settle().await;
                    }
                    false
                }
                // Nothing is listed on a watch that begins with changes.
                Some(WatchStep::Listed(_) | WatchStep::Synced(_) | WatchStep::Reset(_)) => true,
                None => false,
            };
            // Who was not told that it ended goes on counting: no word on progress may speak for it.
            if !going_on {
                return;
            }
        }
    }

    async fn changes(&mut self, changes: Vec<Change>) -> bool {
        let Some(revision) = changes.last().map(|change| change.events.revision) else { return true };
        self.side.watches.tell(revision);
        let whole = changed(header_at(&self.side.door, revision), self.id, changes);
        let most = self.side.door.state.options.request_bytes_max;
        if !self.fragment || whole.encoded_len() <= most {
            return self.side.out.send(whole).await;
        }
        for part in fragments(whole, most) {
            if !self.side.out.send(part).await {
                return false;
            }
        }
        true
    }

    async fn progress(&mut self, revision: Revision) -> bool {
        match self.side.watches.told(self.id, revision) {
            Told::NotAsked if self.notify => self.side.out.send(progress_of(&self.side.door, self.id, revision)).await,
            Told::NotAsked => true,
            Told::NotYet => {
                tokio::time::sleep(PROGRESS_AGAIN).await;
                self.stream.request_progress();
                true
            }
            Told::Noted => self.side.settle().await,
        }
    }

    async fn failed(&mut self, failure: Failure) -> bool {
        let answer = match failure {
            Failure::Rejected(Rejection::Compacted { compacted, .. }) => {
                compacted_away(&self.side.door, self.id, compacted)
            }
            failure => pb::WatchResponse {
                header: Some(header(&self.side.door.service().header())),
                watch_id: self.id,
                canceled: true,
                cancel_reason: self.side.door.failed(&failure).message().to_owned(),
                ..pb::WatchResponse::default()
            },
        };
        self.side.out.send(answer).await
    }
}

fn changed(at: pb::ResponseHeader, watch_id: i64, changes: Vec<Change>) -> pb::WatchResponse {
    let mut events = Vec::with_capacity(changes.len());
    changes.into_iter().for_each(|change| push_events(&mut events, change));
    pb::WatchResponse { header: Some(at), watch_id, events, ..pb::WatchResponse::default() }
}

fn push_events(events: &mut Vec<mvccpb::Event>, change: Change) {
    use mvccpb::event::EventType;
    let mut previous = change.previous.into_iter();
    events.extend(change.events.events.iter().map(|event| mvccpb::Event {
        r#type: i32::from(match event.kind {
            EventKind::Put => EventType::Put,
            EventKind::Delete(_) => EventType::Delete,
        }),
        kv: Some(key_value_of(&event.kv)),
        prev_kv: previous.next().flatten().map(key_value),
    }));
}

/// Parts of at most about so many bytes, each of at least one event; all but the last say that more comes.
fn fragments(whole: pb::WatchResponse, bytes_max: usize) -> Vec<pb::WatchResponse> {
    let empty = pb::WatchResponse { events: Vec::new(), ..whole.clone() };
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (empty.clone(), empty.encoded_len());
    for event in whole.events {
        let size = event.encoded_len() + 8;
        if !part.events.is_empty() && bytes + size > bytes_max {
            parts.push(pb::WatchResponse { fragment: true, ..std::mem::replace(&mut part, empty.clone()) });
            bytes = empty.encoded_len();
        }
        bytes += size;
        part.events.push(event);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_hold_every_event_once_and_end_with_one_that_says_so() {
        let event = |size: usize| {
            let kv = mvccpb::KeyValue { value: vec![b'x'; size].into(), ..Default::default() };
            mvccpb::Event { kv: Some(kv), ..Default::default() }
        };
        let events: Vec<_> = [10, 900, 50, 50, 2000, 1].map(event).into();
        let whole = pb::WatchResponse { watch_id: 7, events: events.clone(), ..Default::default() };
        let parts = fragments(whole, 1000);
        let flags: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        assert_eq!(flags, [true, true, true, false]);
        assert!(parts.iter().all(|part| part.watch_id == 7 && !part.events.is_empty()));
        assert_eq!(parts.into_iter().flat_map(|part| part.events).collect::<Vec<_>>(), events);
    }
}
