//! etcd's messages and clients of its services, which `build.rs` makes from the same descriptions as the
//! server's side. Nothing is written by hand here.
#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code keeps its own style"
)]

include!(concat!(env!("OUT_DIR"), "/client/etcd.rs"));
