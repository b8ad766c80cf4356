//! Tests of the machine as a whole: named cases, a naive model, determinism, cost.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "small numbers of a test's own"
)]

mod against_model;
mod auth;
mod cases;
mod cost;
mod generate;
mod model;
mod renew;
mod support;
mod upkeep;
