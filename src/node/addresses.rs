//! A member that comes back under other URLs says so, until the membership has them.
//!
//! Its peers know it by the membership, so with another peer URL none of them reaches it and it hears of no
//! leader: then it asks the others one by one, as a newcomer would. Invariant: only what was set with
//! `--advertise-peer` and `--advertise-client` is announced; what an operator changed in the membership
//! stands if nothing is set.

use super::config::Checked;
use super::forming::Asker;
use super::identity::Identity;
use super::reception::{Answer, Card, Question};
use crate::raft::{Consensus, Member};
use std::time::Duration;

/// How long the cluster may take to note a change.
const CHANGE: Duration = Duration::from_millis(2_500);
/// Before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be announced; empty is not.
#[derive(Debug, Clone)]
pub(super) struct Advertised {
    pub(super) peer_url: String,
    pub(super) client_url: String,
}

impl Advertised {
    pub(super) fn of(config: &Checked) -> Self {
        let client_url = if config.advertise_client_set { config.advertise_client.clone() } else { String::new() };
        Self { peer_url: config.advertise_peer.clone(), client_url }
    }

    fn of_member(&self, known: &Member) -> Member {
        let or_known = |own: &str, known: &str| if own.is_empty() { known.to_owned() } else { own.to_owned() };
        Member {
            peer_url: or_known(&self.peer_url, &known.peer_url),
            client_url: or_known(&self.client_url, &known.client_url),
            ..known.clone()
        }
    }
}

/// Runs until the membership has what is advertised.
pub(super) async fn announce(consensus: Consensus, identity: Identity, advertised: Advertised, asker: Asker) {
    let id = identity.node_id;
    loop {
        // A newcomer is told of the membership it is in a moment later.
        if let Some(known) = consensus.member(id) {
            let wanted = advertised.of_member(&known);
            if wanted == known {
                return;
            }
            if let Some(by) = tell(&consensus, &identity, &wanted, &asker).await {
                let (peer, client) = (&wanted.peer_url, &wanted.client_url);
                tracing::info!(peer, client, by, "the membership has this member's new URLs");
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Who took it.
async fn tell(consensus: &Consensus, identity: &Identity, wanted: &Member, asker: &Asker) -> Option<String> {
    let id = identity.node_id;
    let hears_leader = consensus.state().leader.is_some();
    if hears_leader && consensus.take_in(id, wanted.clone(), CHANGE).await.is_ok() {
        return Some("this member".to_owned());
    }
    let card = Card {
        name: wanted.name.clone(),
        node_id: id,
        incarnation: identity.incarnation,
        cluster_id: identity.cluster_id,
        begun: true,
        peer_url: wanted.peer_url.clone(),
        client_url: wanted.client_url.clone(),
    };
    for (_, other) in consensus.members().into_iter().filter(|(other, _)| *other != id) {
        match asker.ask(&other.peer_url, &Question::Join(card.clone())).await {
            Ok(Answer::Welcome { .. }) => return Some(other.name),
            Ok(_) => {}
            Err(why) => tracing::debug!(member = %other.name, "the new URLs were not taken: {why}"),
        }
    }
    None
}
