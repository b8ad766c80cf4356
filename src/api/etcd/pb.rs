//! The messages and services that `build.rs` makes from `proto/`. Nothing is written by hand here, and
//! what is made knows nothing of ours.
#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code keeps its own style"
)]

include!(concat!(env!("OUT_DIR"), "/etcd.rs"));

/// All of them as a `FileDescriptorSet`, for reflection and the JSON gateway.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));
