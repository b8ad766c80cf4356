//! gRPC's health service: a member is serving while it knows a leader and is not ending.

use super::pb::grpc::health::v1 as health;
use super::pb::grpc::health::v1::health_check_response::ServingStatus;
use super::pb::grpc::health::v1::health_server::Health;
use super::{Answers, Door};
use futures_util::{StreamExt, stream};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// What can be asked for by name, besides the server as a whole.
const SERVICES: &[&str] = &[
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "v3lockpb.Lock",
    "v3electionpb.Election",
];
const LOOK: Duration = Duration::from_millis(500);

#[tonic::async_trait]
impl Health for Door {
    type WatchStream = Answers<health::HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<health::HealthCheckRequest>,
    ) -> Result<Response<health::HealthCheckResponse>, Status> {
        match self.serving(&request.into_inner().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(answer(status))),
        }
    }

    async fn watch(&self, request: Request<health::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (door, service) = (self.clone(), request.into_inner().service);
        let stopping = self.service().stopping().clone();
        let changes = stream::unfold(None, move |told| {
            let (door, service) = (door.clone(), service.clone());
            async move {
                loop {
                    let status = door.serving(&service);
                    if told != Some(status) {
                        return Some((Ok(answer(status)), Some(status)));
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        Ok(Response::new(changes.take_until(async move { stopping.cancelled().await }).boxed()))
    }
}

fn answer(status: ServingStatus) -> health::HealthCheckResponse {
    health::HealthCheckResponse { status: i32::from(status) }
}

impl Door {
    fn serving(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            ServingStatus::ServiceUnknown
        } else if self.has_leader() && !self.service().stopping().is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}
