//! The port for other members: bound before there is a cluster, and until after there is one here.
//!
//! Invariant: a member of a cluster of several has its peer port or does not start. One that is alone
//! and was not told where to listen goes on without it.

use super::config::{Checked, Forming};
use super::{NodeError, io_error};
use crate::env::TaskSet;
use crate::model::limits;
use crate::net::Listener;
use crate::peer::Door;
use crate::raft::Consensus;
use futures_util::FutureExt;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What open streams of peers get at the end: they are broken off anyway.
const DRAIN: Duration = Duration::from_millis(100);
const STOP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct PeerPort {
    bound: Result<Listener, NodeError>,
}

/// The port while it is served.
#[derive(Debug)]
pub(super) struct Serving {
    failed: Option<NodeError>,
    closing: CancellationToken,
    tasks: TaskSet,
}

impl PeerPort {
    pub(super) async fn bind(config: &Checked) -> Result<Self, NodeError> {
        let address = config.listen_peer;
        let listener = Listener::bind(address).await;
        let bound = listener.map_err(io_error(format!("listen on {address} for other members"), "--listen-peer"));
        if config.forming != Forming::Alone || config.listen_peer_set {
            return Ok(Self { bound: Ok(bound?) });
        }
        Ok(Self { bound })
    }

    /// What other members are told; empty if they cannot come.
    pub(super) fn url(&self, config: &Checked) -> String {
        let own = match &config.forming {
            Forming::Static(members) => members.iter().find(|(name, _)| *name == config.name).map(|(_, url)| url),
            Forming::Alone | Forming::Expect { .. } | Forming::Join(_) => None,
        };
        match (&self.bound, own) {
            (Err(_), _) => String::new(),
            (Ok(_), _) if !config.advertise_peer.is_empty() => config.advertise_peer.clone(),
            (Ok(_), Some(own)) => own.clone(),
            (Ok(listener), None) => format!("http://{}", listener.address()),
        }
    }

    pub(super) fn serve(self, door: Door) -> Serving {
        let (closing, tasks) = (CancellationToken::new(), TaskSet::new());
        let listener = match self.bound {
            Ok(listener) => listener,
            Err(error) => return Serving { failed: Some(error), closing, tasks },
        };
        let handler = move |request| door.clone().handle(request);
        let serving = listener.serve(
            handler,
            super::listening(limits::PEER_CONNECTIONS_MAX),
            tasks.clone(),
            closing.clone(),
            DRAIN,
        );
        // Peers keep their streams open until then.
        tasks.spawn("peer port", serving.map(drop));
        Serving { failed: None, closing, tasks }
    }
}

impl Serving {
    /// With others in the cluster there is no doing without the port.
    pub(super) fn must_serve(&self, consensus: &Consensus) -> Result<(), NodeError> {
        match &self.failed {
            Some(error) if consensus.members().len() > 1 => Err(super::setting(error.to_string())),
            Some(error) => {
                tracing::info!("alone without a peer port, this member cannot be joined by others: {error}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) async fn end(self) {
        self.closing.cancel();
        // What is left is cut with the process.
        self.tasks.stop(STOP).await;
    }
}
