//! How a member without data comes to its cluster: founded alone, by agreement, or joined.
//!
//! Of the members that are to form a cluster the one with the lowest name founds it: it collects the
//! others' identities, draws the cluster's id, has each of them write it down, and only then
//! initialises Raft with all of them. Invariants: a member belongs to at most one cluster and has that
//! on disk before it says so, so no two clusters can be formed of overlapping members; a member that
//! lost its data is not taken for a new one of the same name. It must not know what Raft does.

use super::config::Forming;
use super::identity::{DataDir, Identity};
use super::reception::{Answer, Card, Question, Reception};
use super::{NodeError, setting};
use crate::env::{Clock, Entropy};
use crate::model::codec;
use crate::peer::{self, Settings};
use crate::raft::{Member, MemberId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const ASK: Duration = Duration::from_secs(3);
const ASK_PAUSE: Duration = Duration::from_millis(200);
/// How often a member that waits says for what.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What a member sets out with.
#[derive(Debug)]
pub(super) struct Formed {
    pub(super) identity: Identity,
    /// For the founder: who the members are. Raft is to be initialised with them, if it has no log.
    pub(super) members: Option<BTreeMap<MemberId, Member>>,
}

/// How others are asked.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl Asker {
    pub(super) async fn ask(&self, url: &str, question: &Question) -> Result<Answer, String> {
        let question = codec::encode(question).map_err(|fault| fault.to_string())?;
        let (clock, entropy) = (self.clock.clone(), self.entropy.clone());
        let answer = peer::meet(url, question.into(), self.settings, clock, entropy, ASK).await?;
        codec::decode("peer's answer", &answer).map_err(|fault| fault.to_string())
    }

    async fn describe(&self, url: &str, own: &Card) -> Result<(Card, Vec<Card>), String> {
        match self.ask(url, &Question::Describe(own.clone())).await? {
            Answer::Card { card, others } => Ok((card, others)),
            Answer::Adopted | Answer::Welcome { .. } => Err(format!("{url} answered something else")),
        }
    }
}

/// Waits until this member belongs to a cluster. One that holds a log does.
pub(super) async fn form(
    forming: &Forming,
    has_log: bool,
    data: &DataDir,
    reception: &Reception,
    asker: &Asker,
) -> Result<Formed, NodeError> {
    let identity = reception.identity();
    let begun = has_log || identity.bootstrapped || (identity.cluster_id != 0 && !identity.founder);
    if begun {
        return Ok(Formed { identity, members: None });
    }
    match forming {
        Forming::Alone => found(data, reception, asker, BTreeMap::new()).await,
        Forming::Static(members) => form_static(members, data, reception, asker).await,
        Forming::Expect { expect, join } => form_expected(*expect, join, data, reception, asker).await,
        Forming::Join(urls) => join(urls, reception, asker).await,
    }
}

/// Says what is waited for, now and then.
struct Progress<'a> {
    asker: &'a Asker,
    said: Option<Duration>,
    last: String,
}

impl<'a> Progress<'a> {
    fn new(asker: &'a Asker) -> Self {
        Self { asker, said: None, last: String::new() }
    }

    fn say(&mut self, what: String) {
        let now = self.asker.clock.monotonic();
        let due = self.said.is_none_or(|said| now.saturating_sub(said) >= SAY_EVERY);
        if due || what != self.last {
            tracing::info!("{what}");
            (self.said, self.last) = (Some(now), what);
        }
    }
}

async fn form_static(
    members: &[(String, String)],
    data: &DataDir,
    reception: &Reception,
    asker: &Asker,
) -> Result<Formed, NodeError> {
    let own = reception.card();
    let mut others: Vec<&(String, String)> = members.iter().filter(|(name, _)| *name != own.name).collect();
    others.sort();
    let first = others.first().filter(|(name, _)| *name < own.name);
    let mut progress = Progress::new(asker);
    if let Some((founder, url)) = first {
        return wait_for_founder(founder, url, reception, asker).await;
    }
    let mut found_others = BTreeMap::new();
    loop {
        let mut missing = Vec::new();
        for (name, url) in &others {
            if found_others.contains_key(name.as_str()) {
                continue;
            }
            match asker.describe(url, &own).await.and_then(|(card, _)| named(card, name)) {
                Ok(card) => {
                    refuse_lost_disk(&card, &reception.identity())?;
                    tracing::info!(member = %card.name, url = %url, "found a member of the new cluster");
                    found_others.insert(name.as_str(), card);
                }
                Err(why) => missing.push(format!("{name} ({why})")),
            }
        }
        if missing.is_empty() {
            break;
        }
        progress.say(format!("waiting for {}", missing.join(", ")));
        tokio::time::sleep(ASK_PAUSE).await;
    }
    let cards = found_others.into_values().map(|card| (card.node_id, card)).collect();
    found(data, reception, asker, cards).await
}

fn named(card: Card, name: &str) -> Result<Card, String> {
    if card.name == name { Ok(card) } else { Err(format!("the member there is called {}", card.name)) }
}

/// A cluster that exists has no place for a member without data under a name it knows.
fn refuse_lost_disk(card: &Card, own: &Identity) -> Result<(), NodeError> {
    if !card.begun || card.cluster_id == own.cluster_id {
        return Ok(());
    }
    Err(setting(format!(
        "{} belongs to cluster {:x} already, and this member's data directory is empty: it is not a member of it, or has lost its disk\nhint: remove the old member with `tenure member remove`, then start this one with --join {} instead of --initial-cluster",
        card.name, card.cluster_id, card.peer_url
    )))
}

async fn wait_for_founder(founder: &str, url: &str, reception: &Reception, asker: &Asker) -> Result<Formed, NodeError> {
    let mut progress = Progress::new(asker);
    loop {
        if let Some(identity) = reception.adopted() {
            return Ok(Formed { identity, members: None });
        }
        match asker.describe(url, &reception.card()).await {
            // Between the question and the answer it may have adopted this member.
            Ok((card, _)) if reception.adopted().is_none() => {
                refuse_lost_disk(&card, &reception.identity())?;
                progress.say(format!("waiting for {founder} to found the cluster"));
            }
            Ok(_) => {}
            Err(why) => progress.say(format!("waiting for {founder} ({why})")),
        }
        reception.wait_adopted(ASK_PAUSE).await;
    }
}

async fn form_expected(
    expect: usize,
    join: &[String],
    data: &DataDir,
    reception: &Reception,
    asker: &Asker,
) -> Result<Formed, NodeError> {
    let own = reception.card();
    let mut progress = Progress::new(asker);
    loop {
        if let Some(identity) = reception.adopted() {
            return Ok(Formed { identity, members: None });
        }
        let mut urls: Vec<String> = join.to_vec();
        urls.extend(reception.met().into_iter().map(|card| card.peer_url));
        urls.sort();
        urls.dedup();
        let mut cards: BTreeMap<MemberId, Card> = BTreeMap::new();
        for url in urls.iter().filter(|url| **url != own.peer_url) {
            if let Ok((card, others)) = asker.describe(url, &own).await {
                others.into_iter().for_each(|other| reception.meet(other));
                cards.insert(card.node_id, card);
            }
        }
        cards.remove(&own.node_id);
        if cards.values().any(|card| card.begun && card.cluster_id != reception.identity().cluster_id)
            && reception.adopted().is_none()
        {
            tracing::info!("a cluster exists already: joining it");
            return self::join(&urls, reception, asker).await;
        }
        if cards.len() + 1 >= expect {
            let mut all: Vec<Card> = cards.into_values().collect();
            all.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
            let lower = all.iter().filter(|card| (&card.name, card.node_id) < (&own.name, own.node_id)).count();
            if all.iter().any(|card| card.name == own.name) {
                return Err(setting(format!("another member is called {:?} too; give each its own --name", own.name)));
            }
            if lower == 0 {
                let cards = all.into_iter().take(expect - 1).map(|card| (card.node_id, card)).collect();
                return found(data, reception, asker, cards).await;
            }
            progress.say(format!("waiting for {} to found the cluster", all[0].name));
        } else {
            progress.say(format!("found {} of {expect} members, waiting for the others", cards.len() + 1));
        }
        reception.wait_adopted(ASK_PAUSE).await;
    }
}

/// Draws the cluster's id, unless that was done before a crash, and has the others write it down.
async fn found(
    data: &DataDir,
    reception: &Reception,
    asker: &Asker,
    others: BTreeMap<MemberId, Card>,
) -> Result<Formed, NodeError> {
    let mut identity = reception.identity();
    if identity.cluster_id == 0 {
        identity = identity.founding(&*asker.entropy);
        data.save(&identity)?;
        reception.become_(identity.clone());
    }
    let mut progress = Progress::new(asker);
    for card in others.values() {
        let adopt = Question::Adopt {
            cluster_id: identity.cluster_id,
            node_id: card.node_id,
            incarnation: card.incarnation,
            founder: reception.card().name,
        };
        while let Err(why) = asker.ask(&card.peer_url, &adopt).await {
            progress.say(format!("waiting for {} to agree to the new cluster ({why})", card.name));
            tokio::time::sleep(ASK_PAUSE).await;
        }
    }
    let mut members: BTreeMap<MemberId, Member> = others.into_iter().map(|(id, card)| (id, card.member())).collect();
    members.insert(identity.node_id, reception.card().member());
    Ok(Formed { identity, members: Some(members) })
}

/// Asks to be taken in as a learner until somebody does.
async fn join(urls: &[String], reception: &Reception, asker: &Asker) -> Result<Formed, NodeError> {
    let mut progress = Progress::new(asker);
    let card = reception.card();
    loop {
        let mut problems = Vec::new();
        for url in urls.iter().filter(|url| **url != card.peer_url) {
            match asker.ask(url, &Question::Join(card.clone())).await {
                Ok(Answer::Welcome { cluster_id, node_id }) => {
                    let identity = reception.joined(cluster_id, node_id).await?;
                    tracing::info!(cluster = format!("{cluster_id:x}"), "joined as a learner");
                    return Ok(Formed { identity, members: None });
                }
                Ok(_) => problems.push(format!("{url} answered something else")),
                Err(why) => problems.push(why),
            }
        }
        progress.say(format!("waiting to be taken in: {}", problems.join("; ")));
        tokio::time::sleep(ASK_PAUSE * 5).await;
    }
}
