//! Property tests of the state machines in `core`. The fuzz targets do the checks; a failure prints
//! its shrunk case as steps.

use proptest::prelude::*;
use surehook_model::targets::{event, intake, key_places, worker};

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_steps_breaks_a_rule_of_an_events_row(steps in bytes(500).prop_map(|bytes| event::steps(&bytes))) {
        event::check(&steps);
    }

    #[test]
    fn an_intake_keeps_its_promises_whatever_happens(case in bytes(800).prop_map(|bytes| intake::Case::read(&bytes))) {
        intake::check(&case);
    }

    #[test]
    fn a_key_is_the_one_that_a_second_lookup_finds(data in bytes(200)) {
        key_places::run(&data);
    }

    #[test]
    fn a_worker_keeps_its_promises_whatever_happens(case in bytes(800).prop_map(|bytes| worker::Case::read(&bytes))) {
        worker::check(&case);
    }
}
