//! Tests of the machine as a whole: named cases, a naive model, determinism, cost.

mod cases;
mod support;
