//! Tests of the log: against a naive model, under crashes, damage and faults, and with planted bugs.

mod basics;
mod crash;
mod damage;
mod faults;
mod fuzz;
mod harness;
mod model;
mod mutants;
mod speed;
