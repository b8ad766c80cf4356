//! One question to a member that need not be of this cluster: how clusters are formed and joined.

use super::codec::Messages;
use super::door::MEET;
use super::hello::Refusal;
use super::link::{channel, never_sent};
use super::transport::Settings;
use crate::env::{Clock, Entropy};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

/// Asks the member at `url` over a connection of its own.
///
/// # Errors
/// Why there is no answer, for people.
pub async fn meet(
    url: &str,
    question: Bytes,
    settings: Settings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    timeout: Duration,
) -> Result<Bytes, String> {
    let mut grpc = Grpc::new(channel(url, settings.care(), clock, entropy)?);
    let exchange = async {
        grpc.ready().await.map_err(|error| error.to_string())?;
        let answer = grpc.unary(Request::new(question), PathAndQuery::from_static(MEET), Messages::new()).await;
        let why = |status: tonic::Status| match status.code() {
            Code::Unimplemented => format!("{url}: {}", Refusal::no_member()),
            _ => never_sent(&status).unwrap_or_else(|| status.message().to_owned()),
        };
        answer.map(tonic::Response::into_inner).map_err(why)
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(format!("{url} did not answer in time")))
}
