//! What members tell each other before they are in one cluster, and this member's answers.
//!
//! Invariants: the identity here is the one on disk; it is bound to a cluster once.

use super::NodeError;
use super::identity::{DataDir, Identity};
use crate::env::TaskSet;
use crate::model::{Why, codec};
use crate::peer::Meeting;
use crate::raft::{Consensus, Member, MemberId};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// Members met before there is a cluster; more are not remembered.
const MET_MAX: usize = 64;
/// How long a cluster may take to take a member in.
const JOIN: Duration = Duration::from_millis(2_500);

/// A member as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    pub(super) name: String,
    pub(super) node_id: MemberId,
    pub(super) incarnation: u64,
    /// 0 if it has none.
    pub(super) cluster_id: u64,
    /// Its cluster has begun: it holds a log.
    pub(super) begun: bool,
    pub(super) peer_url: String,
    pub(super) client_url: String,
}

impl Card {
    pub(super) fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            peer_url: self.peer_url.clone(),
            client_url: self.client_url.clone(),
            incarnation: u128::from(self.incarnation),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// This is who I am; who are you, and whom have you met?
    Describe(Card),
    /// Belong to this new cluster.
    Adopt { cluster_id: u64, node_id: MemberId, incarnation: u64, founder: String },
    /// Take me in as a learner; or, from a member, note where I am now.
    Join(Card),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Card { card: Card, others: Vec<Card> },
    Adopted,
    Welcome { cluster_id: u64, node_id: MemberId },
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Reception(Arc<Inner>);

struct Inner {
    data: Arc<DataDir>,
    tasks: TaskSet,
    /// Its place in the cluster is filled in from the identity.
    card: Card,
    /// It waits to be adopted by a founder.
    adoptable: bool,
    identity: watch::Sender<Identity>,
    met: Mutex<BTreeMap<MemberId, Card>>,
    consensus: OnceLock<Consensus>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reception").field("identity", &*self.identity.borrow()).finish_non_exhaustive()
    }
}

/// Under which name and where this member is reached.
#[derive(Debug, Clone)]
pub(super) struct Reachable {
    pub(super) name: String,
    pub(super) peer_url: String,
    pub(super) client_url: String,
}

impl Reception {
    pub(super) fn new(data: Arc<DataDir>, identity: Identity, at: Reachable, adoptable: bool, tasks: TaskSet) -> Self {
        let card = Card {
            name: at.name,
            node_id: identity.node_id,
            incarnation: identity.incarnation,
            cluster_id: 0,
            begun: false,
            peer_url: at.peer_url,
            client_url: at.client_url,
        };
        let (identity, met) = (watch::Sender::new(identity), Mutex::new(BTreeMap::new()));
        Self(Arc::new(Inner { data, tasks, card, adoptable, identity, met, consensus: OnceLock::new() }))
    }

    pub(super) fn identity(&self) -> Identity {
        self.0.identity.borrow().clone()
    }

    /// From now on newcomers are taken in.
    pub(super) fn open(&self, consensus: Consensus) {
        self.0.consensus.get_or_init(|| consensus);
    }

    pub(super) fn card(&self) -> Card {
        let identity = self.identity();
        let begun =
            identity.bootstrapped || self.0.consensus.get().is_some_and(|inside| inside.state().last_log.is_some());
        Card { node_id: identity.node_id, cluster_id: identity.cluster_id, begun, ..self.0.card.clone() }
    }

    /// Notes another member that has no cluster yet.
    pub(super) fn meet(&self, card: Card) {
        let mut met = self.0.met.lock();
        let known = met.contains_key(&card.node_id);
        if card.node_id != self.0.card.node_id && (known || met.len() < MET_MAX) {
            met.insert(card.node_id, card);
        }
    }

    pub(super) fn met(&self) -> Vec<Card> {
        self.0.met.lock().values().cloned().collect()
    }

    /// The identity, once it is bound to a cluster.
    pub(super) fn adopted(&self) -> Option<Identity> {
        Some(self.identity()).filter(|identity| identity.cluster_id != 0)
    }

    pub(super) async fn wait_adopted(&self, within: Duration) {
        let mut identity = self.0.identity.subscribe();
        // Whether it was adopted is looked at again by who waits.
        drop(tokio::time::timeout(within, identity.wait_for(|identity| identity.cluster_id != 0)).await);
    }

    /// What was saved is now this member's identity.
    pub(super) fn become_(&self, identity: Identity) {
        self.0.identity.send_replace(identity);
    }

    async fn bind(&self, identity: Identity) -> Result<(), NodeError> {
        let (data, saved) = (self.0.data.clone(), identity.clone());
        match self.0.tasks.blocking(move || data.save(&saved)).await {
            Some(result) => result?,
            None => return Err(super::setting("saving the identity panicked".to_owned())),
        }
        self.become_(identity);
        Ok(())
    }

    /// A cluster took this member in, under this number.
    pub(super) async fn joined(&self, cluster_id: u64, node_id: MemberId) -> Result<Identity, NodeError> {
        let identity = Identity { cluster_id, node_id, ..self.identity() };
        self.bind(identity.clone()).await?;
        Ok(identity)
    }

    pub(super) fn meeting(&self) -> Meeting {
        let this = self.clone();
        Arc::new(move |question: Bytes| {
            let this = this.clone();
            Box::pin(async move {
                let question = codec::decode("peer's question", &question).map_err(|fault| fault.to_string())?;
                let answer = this.answer(question).await?;
                codec::encode(&answer).map(Bytes::from).map_err(|fault| fault.to_string())
            })
        })
    }

    async fn answer(&self, question: Question) -> Result<Answer, String> {
        match question {
            Question::Describe(card) => {
                if self.0.adoptable && card.cluster_id == 0 {
                    self.meet(card);
                }
                Ok(Answer::Card { card: self.card(), others: self.met() })
            }
            Question::Adopt { cluster_id, node_id, incarnation, founder } => {
                self.adopt(cluster_id, node_id, incarnation, &founder).await.map(|()| Answer::Adopted)
            }
            Question::Join(card) => self.welcome(card).await,
        }
    }

    async fn adopt(&self, cluster_id: u64, node_id: MemberId, incarnation: u64, founder: &str) -> Result<(), String> {
        let own = self.identity();
        if (own.node_id, own.incarnation) != (node_id, incarnation) {
            return Err(format!("{} has got another data directory meanwhile", self.0.card.name));
        }
        if own.cluster_id == cluster_id {
            return Ok(());
        }
        if own.cluster_id != 0 {
            return Err(format!(
                "{} belongs to cluster {:x} already: give it an empty data directory, or correct the members' settings",
                self.0.card.name, own.cluster_id
            ));
        }
        if !self.0.adoptable {
            return Err(format!("{} is not waiting for a cluster to be founded", self.0.card.name));
        }
        let identity = Identity { cluster_id, ..own };
        self.bind(identity).await.map_err(|error| error.to_string())?;
        tracing::info!(cluster = format!("{cluster_id:x}"), founder, "belongs to a new cluster");
        Ok(())
    }

    async fn welcome(&self, card: Card) -> Result<Answer, String> {
        let Some(consensus) = self.0.consensus.get() else {
            return Err(format!("{} has not joined a cluster itself yet", self.0.card.name));
        };
        // A member with new URLs asks like a newcomer, and may have come to the wrong address.
        if card.begun && card.cluster_id != self.identity().cluster_id {
            return Err(format!("{} belongs to another cluster than {}", card.name, self.0.card.name));
        }
        let joined = consensus.take_in(card.node_id, card.member(), JOIN).await;
        let refused = |failure: crate::model::Failure| match failure {
            crate::model::Failure::Unavailable { why: Why::NoLeader, .. } => "the cluster has no leader now".to_owned(),
            other => other.to_string(),
        };
        let node_id = joined.map_err(refused)?;
        Ok(Answer::Welcome { cluster_id: self.identity().cluster_id, node_id })
    }
}
