//! Tests of the memory's accounts alone: who gets freed memory, and in which order.

use super::memory::LIMIT;
use crate::source::Policy;
use crate::worker::memory::{Memory, Origin, Pace};
use crate::worker::queue::SourceQueue;
use alloc::format;
use alloc::vec::Vec;

/// The memory of this number of sources. The next event of each one has its size from `next`.
fn waiting<const N: usize>(next: [usize; N]) -> (Memory, Vec<SourceQueue>) {
    let mut memory = Memory::new(LIMIT, N);
    let queues = next.into_iter().enumerate().map(|(n, size)| {
        memory.wait(n);
        let mut queue = SourceQueue::new(super::source(&format!("s{n}")), Policy::default());
        queue.next_size = Some(size);
        queue
    });
    let queues = queues.collect();
    (memory, queues)
}

#[test]
fn a_source_that_becomes_prompt_frees_memory_for_those_that_wait() {
    let (mut memory, queues) = waiting([1, 10_000]);
    memory.take(0, Origin::Claim, LIMIT / 8 + 20_000);
    memory.take(1, Origin::Claim, LIMIT / 8);
    memory.check();
    memory.wait(1);
    assert_eq!(memory.grant(&queues), [0; 0], "its group has 4,000 bytes left");
    memory.learn(0, Pace::Prompt);
    assert_eq!(memory.grant(&queues), [1], "the other source counts in another group now");
}

#[test]
fn at_most_one_event_larger_than_a_groups_part_is_held() {
    let (mut memory, queues) = waiting([40_000, 40_000]);
    memory.learn(1, Pace::Prompt);
    let first = memory.grant(&queues);
    assert_eq!(first.len(), 1);
    let other = 1 - first[0];
    memory.wait_no_more(other);
    memory.wait(other);
    assert_eq!(memory.grant(&queues), [0; 0]);
    memory.withdraw(first[0]);
    assert_eq!(memory.grant(&queues), [other]);
}

#[test]
fn a_source_that_stops_waiting_without_memory_keeps_its_place() {
    let (mut memory, queues) = waiting([25_000, 25_000, 25_000]);
    memory.wait_no_more(0);
    memory.wait(0);
    assert_eq!(memory.grant(&queues), [0]);
}

#[test]
fn a_resized_memory_serves_those_that_wait_and_keeps_that_of_a_claim_in_flight() {
    let (mut memory, mut queues) = waiting([25_000; 3]);
    assert_eq!(memory.grant(&queues), [0]);
    queues[0].is_asked = true;
    memory.resize(LIMIT, &queues);
    assert_eq!(memory.room(0), 25_000);
    assert_eq!(memory.grant(&queues), [0; 0]);
    memory.resize(10 * LIMIT, &queues);
    assert_eq!(memory.grant(&queues), [1, 2]);
    memory.check();
}
