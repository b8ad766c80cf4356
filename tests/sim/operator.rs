//! Who changes the membership: adds a member, makes it a voter, and takes one out, through whatever
//! member answers.

use super::client::{Client, Settled};
use super::host::member;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tenure::raft::MemberId;
use tenure::service::NewMember;

/// What is wanted of the machines.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// Changes asked for and not begun.
    pub(crate) wanted: u64,
    pub(crate) boot: Vec<MemberId>,
    pub(crate) retire: Vec<MemberId>,
    pub(crate) next_id: MemberId,
    pub(crate) done: u64,
}

/// Never fewer voters than this, and never more members than that.
const VOTERS_MIN: usize = 3;
const MEMBERS_MAX: usize = 6;

impl Client {
    pub(crate) async fn operate(mut self, orders: Arc<Mutex<Orders>>) {
        while !self.is_over() {
            self.think(50, 150).await;
            let wanted = std::mem::take(&mut orders.lock().wanted);
            if wanted > 0 && self.change(&orders).await.is_some() {
                orders.lock().done += 1;
            }
        }
    }

    async fn change(&mut self, orders: &Mutex<Orders>) -> Option<()> {
        let (members, voters) = self.standing()?;
        let grows = members.len() < MEMBERS_MAX && (voters.len() <= VOTERS_MIN || self.rng.percent(50));
        if grows { self.grow(orders).await } else { self.shrink(orders, &voters).await }
    }

    /// The members and the voters, as some member knows them.
    fn standing(&mut self) -> Option<(Vec<MemberId>, Vec<MemberId>)> {
        let to = self.anyone()?;
        let home = self.net.home(to)?;
        let members = home.consensus.members().into_keys().collect();
        Some((members, home.consensus.voters().into_iter().collect()))
    }

    async fn grow(&mut self, orders: &Mutex<Orders>) -> Option<()> {
        let id = {
            let mut orders = orders.lock();
            orders.next_id += 1;
            orders.next_id
        };
        let at = member(id);
        let new = NewMember { id, name: at.name, peer_url: at.peer_url, client_url: at.client_url };
        let (to, context) = (self.anyone()?, self.context());
        let added = self.ask(to, move |home| Box::pin(async move { home.service.add_member(&context, new).await }));
        // If it is not known whether it was added, it is there just in case.
        if matches!(added.await, Settled::Refused | Settled::No) {
            return None;
        }
        orders.lock().boot.push(id);
        for _ in 0..6 {
            self.think(200, 800).await;
            let to = self.anyone()?;
            let name = format!("m{id}");
            let promoted = self.ask(to, move |home| {
                Box::pin(async move { home.service.promote_member(&name, Duration::from_secs(2), 50).await })
            });
            match promoted.await {
                Settled::Answer(..) => return Some(()),
                _ if self.is_over() => return None,
                _ => {}
            }
        }
        None
    }

    async fn shrink(&mut self, orders: &Mutex<Orders>, voters: &[MemberId]) -> Option<()> {
        let out = *self.rng.pick(voters).filter(|_| voters.len() > VOTERS_MIN)?;
        let (to, context, name) = (self.anyone()?, self.context(), format!("m{out}"));
        let removed =
            self.ask(to, move |home| Box::pin(async move { home.service.remove_member(&context, &name, false).await }));
        match removed.await {
            Settled::Answer(..) => {
                orders.lock().retire.push(out);
                Some(())
            }
            _ => None,
        }
    }
}
