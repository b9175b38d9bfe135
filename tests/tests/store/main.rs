//! One list of tests for every store. Each clause of the port [`surehook::ports::Store`] is a function over a
//! database; it holds on the model database, on PostgreSQL and on SQLite, and fails on each store that is named after
//! it, which breaks what it guards. What only one of them can show (a planner's choice, a restart) stands in a module
//! of its own.

mod accept;
mod claim;
mod concurrent;
mod db;
mod differential;
mod dropped;
mod erase;
mod find;
mod later;
mod ping;
mod postgres_only;
mod prune;
mod redrive;
mod schema;
mod search;
mod settle;
mod sqlite_only;
mod transitions;
mod wrong;

/// Makes of each function a test on one kind of database.
macro_rules! tests_on {
    ($database:ident: $($module:ident::$name:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::db::Db::$database().await).await;
            }
        )+
    };
}

/// Makes of each function the test that it fails on each of its wrong stores.
macro_rules! red_on {
    ($database:ident, $wrong:ident: $($module:ident::$name:ident => [$($broken:ident)+],)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                $(
                    let wrong = crate::wrong::$wrong::$broken;
                    crate::wrong::assert_fails(crate::$module::$name(crate::db::Db::$database(wrong).await), stringify!($broken)).await;
                )+
            }
        )+
    };
}

/// The clauses, and for each the wrong stores on which it fails. Without one, a clause does not compile.
macro_rules! clauses {
    ($($module:ident: $($name:ident => $($wrong:ident)|+),+;)+) => {
        mod model { tests_on! { memory: $($($module::$name,)+)+ } }
        mod postgres { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite { tests_on! { sqlite: $($($module::$name,)+)+ } }
        mod red { red_on! { wrong, Wrong: $($($module::$name => [$($wrong)+],)+)+ } }
    };
}

/// Clauses about connections and schemas, of which the model has none.
macro_rules! clauses_of_databases {
    ($($module:ident: $($name:ident => $($wrong:ident)|+),+;)+) => {
        mod postgres_connections { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite_connections { tests_on! { sqlite: $($($module::$name,)+)+ } }
        mod red_connections { red_on! { wrong_database, WrongDatabase: $($($module::$name => [$($wrong)+],)+)+ } }
    };
}

/// What both databases do beyond the port.
macro_rules! beyond_the_port {
    ($($module:ident: $($name:ident),+;)+) => {
        mod postgres_beyond { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite_beyond { tests_on! { sqlite: $($($module::$name,)+)+ } }
    };
}

clauses! {
    accept:
        a_new_event_is_inserted_and_queued => NewIsDueLater,
        a_new_event_with_a_lease_starts_as_a_claim_would_leave_it => SaysClaimedAndQueues | ClaimsTheWholeBatch,
        a_new_event_of_a_paused_source_is_queued_whatever_its_lease => ClaimsWhatIsNewOfAPausedSource,
        what_was_answered_is_there_for_every_other_process => AnswersBeforeItStores,
        a_hundred_concurrent_accepts_of_one_key_make_one_event => NoUniqueness,
        two_processes_accept_overlapping_keys_in_opposite_orders => DeadlocksUnlessSorted,
        one_event_accepted_twice_at_once_is_stored_once_under_its_own_id => OwnIdIsRejected,
        one_key_twice_in_one_batch_makes_one_event => NoUniqueness,
        a_duplicate_beside_sixty_three_new_events_changes_nothing_for_them => DuplicateFailsItsBatch,
        the_answers_come_in_the_batchs_order => AnswersInTheOrderOfKeys,
        one_key_in_two_sources_makes_two_events => DedupesWithoutSource,
        a_commit_whose_reply_was_lost_is_found_under_its_own_id => OwnIdIsRejected,
        a_key_that_is_there_is_answered_with_where_its_event_stands => ExistingIsAlwaysQueued,
        a_key_that_comes_again_with_another_body_changes_nothing => KeepsTheNewestBody,
        a_row_that_the_database_refuses_leaves_nothing_of_its_batch => PartOfARejectedBatchStays,
        a_batch_of_nothing_is_nothing => NothingIsRejected;
    claim:
        the_oldest_due_of_a_source_are_claimed_up_to_the_limit => NewestFirst | IgnoresLimits,
        a_claimed_row_is_processing_until_its_leases_end_with_its_attempt_and_fence_up_by_one
            => FenceStaysAtAClaim | AttemptStaysAtAClaim | NoLease,
        each_demand_has_its_own_limit_and_lease => OneLeaseForAll | OneLimitForAll,
        events_are_claimed_while_their_bytes_fit
            => IgnoresBytes | WeighsEachAlone | WeighsBodiesAlone | SkipsWhatDoesNotFit | SaysNothingOfWhatDoesNotFit,
        each_demand_has_its_own_bound_of_bytes => OneBoundOfBytesForAll,
        what_is_buried_takes_no_bytes => WeighsWhatItBuries,
        what_is_not_due_is_not_claimed => ClaimsWhatIsNotDue,
        a_lease_that_ran_out_is_claimed_again_and_its_attempt_recorded_as_lost => ForgetsLostAttempts | KeepsLeasesForEver,
        an_event_with_no_attempts_left_is_dead_lettered_unsent => NeverBuries | SendsWhatItBuries,
        an_event_whose_budget_was_lowered_is_dead_lettered_as_exhausted => BuriesAlwaysAsLost,
        what_is_buried_counts_against_the_limit => BuriedDoNotCount,
        concurrent_claimers_never_share_an_event => HandsOutTwice,
        bytes_that_are_no_text_come_back_as_they_came => BytesAsText,
        a_claim_tells_how_long_ago_its_event_was_received => AgesFromTheClaim,
        the_longest_lease_stays_within_the_calendar => LongLeasesAreRejected;
    settle:
        a_delivered_event_ends_with_its_attempt => ForgetsRecords | DeliveredStaysOwed,
        a_stale_settlement_is_refused_after_the_event_was_claimed_again => ForgetsTheFence | NeverRefuses,
        a_settlement_tried_again_is_refused_and_changes_nothing => NeverRefuses | RecordsWhatItRefuses,
        a_stale_settlement_does_not_hold_up_its_batch => StaleFailsItsBatch,
        two_settlements_of_one_claim_in_one_batch_settle_it_once => LastOfABatchWins,
        two_claims_of_one_event_in_one_batch_are_told_apart => RefusesByEventAlone,
        an_event_that_is_not_there_is_refused => NeverRefuses,
        a_delivery_without_a_record_still_tells_when_it_ended => BareDeliveryHasNoEntry,
        an_attempt_ended_before_it_was_settled => EndsWhenItIsSettled;
    redrive:
        a_dead_letter_is_queued_again_with_a_new_budget => RedriveKeepsTheBudget | RedriveForgetsAttempts,
        what_is_not_dead_lettered_is_not_redriven => RedrivesWhatIsAlive,
        an_unknown_event_is_not_found => RedrivesWhatIsNot,
        what_was_delivered_is_sent_once_more_when_that_is_asked_for => RedrivesDeliveredAsNew,
        a_claim_of_before_settles_nothing_of_what_is_sent_once_more => RedrivesDeliveredUnderAnOldFence,
        what_is_not_delivered_is_not_sent_once_more => DeliversAgainWhateverItIs,
        of_many_who_send_an_event_once_more_at_the_same_time_one_does => DeliversAgainWhateverItIs;
    find:
        an_event_is_shown_at_each_step_of_its_life => HistoryNewestFirst | RetriesAtOnce,
        an_unknown_event_is_nothing => UnknownIsAnError;
    prune:
        each_end_has_its_own_retention => OneRetention | LeavesAttempts,
        what_is_owed_is_never_deleted => PrunesWhatIsOwed,
        a_pass_goes_page_by_page_to_the_last_event => IgnoresThePage | PassNeverEnds | PassEndsAtWhatIsYoung,
        ids_of_a_clock_that_is_behind_do_not_end_a_pass => PassEndsAtWhatIsYoung | FrontNeverEnds,
        a_pruned_key_is_new_again => KeysOutliveTheirEvents,
        a_redrive_and_a_pruning_at_once_leave_an_event_whole_or_gone => LeavesAttempts,
        what_is_sent_once_more_beside_a_pruning_is_whole_or_gone => LeavesAttempts,
        two_prunings_at_once_delete_each_event_once => SaysTwiceAsMany;
    erase:
        the_payload_of_a_delivered_event_goes_after_its_time_and_its_record_stays
            => SaysErasedAndKeeps | ErasesTheFingerprint | ErasesByReception,
        what_is_not_delivered_keeps_its_payload => ErasesDeadLetters,
        an_erasing_goes_page_by_page_to_the_last_event => ErasesWithoutThePage,
        what_was_erased_is_not_sent_once_more => SendsNothingOnceMore;
    search:
        a_filter_lists_what_matches_newest_first => OldestFirst | ListsEverySource | ListsOneTooFew,
        a_key_leads_to_its_sources_event => KeyWithoutItsSource,
        pages_follow_each_other_without_a_gap_or_a_repeat => ListsWithoutThePage | ListsOnePageTooMany,
        a_page_that_looked_at_enough_ends_short_and_says_where_it_came_to => LooksAtAll,
        a_listed_event_is_shown_with_its_newest_attempt => ListsTheFirstAttempt,
        redriving_many_takes_the_dead_letters_that_match_and_no_others
            => RedrivesWhatDoesNotMatch | RedrivesEverySource | RedriveOfAllKeepsTheBudget,
        a_dry_run_counts_what_would_be_redriven_and_changes_nothing => RedrivesOnADryRun,
        two_redrives_of_many_at_once_queue_each_letter_once => CountsOnADryRunOnly,
        the_work_of_each_source_is_counted_by_its_status
            => CountsEveryStatusAsQueued | ForgetsSourcesWithoutConfiguration | BehindByWhatIsNotDue,
        a_source_is_behind_by_the_age_of_what_is_due => BehindByWhatIsNotDue,
        a_count_that_came_to_its_end_says_so => CountsWithoutEnd,
        nothing_of_a_paused_source_is_claimed_until_it_is_resumed
            => ForgetsToPause | NeverResumes | PausesEverySource | PausesSettling,
        a_pause_tells_whether_it_changed_anything_and_is_shown => AlwaysSaysChanged | NeverResumes;
    ping:
        a_database_in_order_says_so => NeverInOrder,
        a_probe_leaves_nothing_behind => ProbesStay;
    transitions:
        every_transition_is_the_cores => ForgetsTheFence | RetriesAtOnce | ReleaseBurnsItsAttempt;
}

clauses_of_databases! {
    dropped:
        a_dropped_call_leaves_no_transaction_open => DroppedCallsStayOpen;
    schema:
        a_database_without_a_schema_is_not_available => AlwaysInOrder,
        a_newer_schema_is_refused => AlwaysInOrder,
        a_foreign_schema_is_refused => AlwaysInOrder;
}

beyond_the_port! {
    claim:
        an_event_whose_bytes_are_gone_holds_up_no_other,
        a_history_that_was_written_by_hand_holds_up_no_other;
    prune:
        a_month_of_steady_load_takes_no_more_room_than_its_first_days;
    schema:
        several_processes_migrate_at_once,
        a_database_that_comes_later_is_used_when_it_is_there;
}
