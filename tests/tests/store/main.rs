//! One list of tests for both stores: each is a function over a database, run on PostgreSQL and on SQLite. What only
//! one of them can show (a planner's choice, a restart) stands in a module of its own at the end.

mod accept;
mod claim;
mod db;
mod dropped;
mod find;
mod postgres_only;
mod prune;
mod redrive;
mod schema;
mod settle;
mod sqlite_only;
mod transitions;

/// Runs each function on both databases.
macro_rules! on_both {
    ($($module:ident: $($name:ident),+ $(,)?;)+) => {
        mod postgres {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::$module::$name(crate::db::Db::postgres().await).await;
                }
            )+)+
        }

        mod sqlite {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    crate::$module::$name(crate::db::Db::sqlite().await).await;
                }
            )+)+
        }
    };
}

on_both! {
    accept:
        a_new_event_is_inserted_and_queued,
        a_hundred_concurrent_accepts_of_one_key_make_one_event,
        two_processes_accept_overlapping_keys_in_opposite_orders,
        one_event_accepted_twice_at_once_is_stored_once_under_its_own_id,
        one_key_twice_in_one_batch_makes_one_event,
        a_duplicate_beside_sixty_three_new_events_changes_nothing_for_them,
        one_key_in_two_sources_makes_two_events,
        a_commit_whose_reply_was_lost_is_found_under_its_own_id,
        a_key_that_is_there_is_answered_with_where_its_event_stands,
        a_row_that_the_database_refuses_leaves_nothing_of_its_batch,
        a_batch_of_nothing_is_nothing;
    claim:
        the_oldest_due_of_a_source_are_claimed_up_to_the_limit,
        each_demand_has_its_own_limit_and_lease,
        what_is_not_due_is_not_claimed,
        a_lease_that_ran_out_is_claimed_again_and_its_attempt_recorded_as_lost,
        an_event_with_no_attempts_left_is_dead_lettered_unsent,
        an_event_whose_budget_was_lowered_is_dead_lettered_as_exhausted,
        what_is_buried_counts_against_the_limit,
        concurrent_claimers_never_share_an_event,
        bytes_that_are_no_text_come_back_as_they_came,
        an_event_whose_bytes_are_gone_holds_up_no_other,
        the_longest_lease_stays_within_the_calendar;
    settle:
        a_delivered_event_ends_with_its_attempt,
        a_stale_settlement_is_refused_after_the_event_was_claimed_again,
        a_settlement_tried_again_is_refused_and_changes_nothing,
        a_stale_settlement_does_not_hold_up_its_batch,
        two_settlements_of_one_claim_in_one_batch_settle_it_once,
        two_claims_of_one_event_in_one_batch_are_told_apart,
        an_event_that_is_not_there_is_refused,
        a_delivery_without_a_record_still_tells_when_it_ended,
        an_attempt_ended_before_it_was_settled;
    redrive:
        a_dead_letter_is_queued_again_with_a_new_budget,
        what_is_not_dead_lettered_is_not_redriven,
        an_unknown_event_is_not_found;
    find:
        an_event_is_shown_at_each_step_of_its_life,
        an_unknown_event_is_nothing;
    prune:
        each_end_has_its_own_retention,
        what_is_owed_is_never_deleted,
        a_pass_goes_page_by_page_and_stops_at_what_is_young,
        a_pruned_key_is_new_again,
        a_redrive_and_a_pruning_at_once_leave_an_event_whole_or_gone,
        two_prunings_at_once_delete_each_event_once;
    dropped:
        a_dropped_call_leaves_no_transaction_open;
    transitions:
        every_transition_is_the_cores;
    schema:
        a_database_without_a_schema_is_not_available,
        several_processes_migrate_at_once,
        a_newer_schema_is_refused,
        a_foreign_schema_is_refused,
        a_database_that_comes_later_is_used_when_it_is_there;
}
