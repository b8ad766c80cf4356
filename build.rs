//! Compiles etcd's services, as we describe them, to Rust; no compiler of protobuf needs to be installed.

use prost::Message;
use std::path::PathBuf;
use std::{env, fs};

const PROTOS: &str = "src/api/etcd/proto";
const FILES: &[&str] = &["rpc.proto", "lock.proto", "election.proto", "health.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={PROTOS}");
    let described = protox::compile(FILES, [PROTOS])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("etcd.bin"), described.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(false)
        .build_transport(false)
        .include_file("etcd.rs")
        .compile_fds(described.clone())?;
    let client = out.join("client");
    fs::create_dir_all(&client)?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_server(false)
        .build_transport(false)
        .out_dir(client)
        .include_file("etcd.rs")
        .compile_fds(described)?;
    Ok(())
}
