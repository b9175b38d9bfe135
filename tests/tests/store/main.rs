//! One list of tests for every store. Each clause of the ports of [`surehook::ports::Store`] is a
//! function over a database. It must hold on the model database, on PostgreSQL and on SQLite. It
//! must fail on each wrong store that is listed after it, which breaks what the clause guards.
//! Tests for one database only (a planner's choice, a restart) are in separate modules.

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
mod statements;
mod transitions;
mod wrong;

/// Makes a test of each function on one kind of database.
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

/// Makes a test of each function that checks that it fails on each of its wrong stores.
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

/// The clauses, and for each the wrong stores on which it must fail. A clause without one does not
/// compile.
macro_rules! clauses {
    ($($module:ident: $($name:ident => $($wrong:ident)|+),+;)+) => {
        mod model { tests_on! { memory: $($($module::$name,)+)+ } }
        mod postgres { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite { tests_on! { sqlite: $($($module::$name,)+)+ } }
        mod red { red_on! { wrong, Wrong: $($($module::$name => [$($wrong)+],)+)+ } }
    };
}

/// Clauses about connections and schemas, which the model does not have.
macro_rules! clauses_of_databases {
    ($($module:ident: $($name:ident => $($wrong:ident)|+),+;)+) => {
        mod postgres_connections { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite_connections { tests_on! { sqlite: $($($module::$name,)+)+ } }
        mod red_connections { red_on! { wrong_database, WrongDatabase: $($($module::$name => [$($wrong)+],)+)+ } }
    };
}

/// What both databases do beyond the contract of the port.
macro_rules! beyond_the_port {
    ($($module:ident: $($name:ident),+;)+) => {
        mod postgres_beyond { tests_on! { postgres: $($($module::$name,)+)+ } }
        mod sqlite_beyond { tests_on! { sqlite: $($($module::$name,)+)+ } }
    };
}

clauses! {
    accept:
        a_new_event_is_inserted_and_queued => NewIsDueLater,
        a_new_event_with_a_lease_is_stored_as_claimed => SaysClaimedAndQueues | ClaimsTheWholeBatch,
        a_new_event_of_a_paused_source_is_queued_despite_its_lease => ClaimsWhatIsNewOfAPausedSource,
        an_accepted_event_is_visible_to_every_process => AnswersBeforeItStores,
        concurrent_accepts_of_one_key_store_one_event => NoUniqueness,
        two_processes_accept_overlapping_keys_in_opposite_orders_without_deadlock => DeadlocksUnlessSorted,
        concurrent_accepts_of_one_event_store_it_once_under_its_id => OwnIdIsRejected,
        one_key_twice_in_one_batch_stores_one_event => NoUniqueness,
        a_duplicate_does_not_affect_the_other_events_of_its_batch => DuplicateFailsItsBatch,
        results_are_in_the_order_of_the_batch => AnswersInTheOrderOfKeys,
        one_key_in_two_sources_stores_two_events => DedupesWithoutSource,
        a_retry_after_a_lost_reply_finds_the_event_under_its_id => OwnIdIsRejected,
        an_existing_key_is_answered_with_the_status_of_its_event => ExistingIsAlwaysQueued,
        a_repeated_key_with_another_body_changes_nothing => KeepsTheNewestBody,
        a_rejected_row_rolls_back_its_whole_batch => PartOfARejectedBatchStays,
        an_empty_batch_does_nothing => NothingIsRejected;
    claim:
        the_oldest_due_events_are_claimed_up_to_the_limit => NewestFirst | IgnoresLimits,
        a_claim_sets_processing_and_the_lease_and_increments_attempt_and_fence
            => FenceStaysAtAClaim | AttemptStaysAtAClaim | NoLease,
        each_demand_has_its_own_limit_and_lease => OneLeaseForAll | OneLimitForAll,
        events_are_claimed_while_their_bytes_fit
            => IgnoresBytes | WeighsEachAlone | WeighsBodiesAlone | SkipsWhatDoesNotFit | SaysNothingOfWhatDoesNotFit,
        each_demand_has_its_own_byte_limit => OneBoundOfBytesForAll,
        events_dead_lettered_by_a_claim_use_no_bytes => WeighsDeadLetters,
        events_that_are_not_due_are_not_claimed => ClaimsWhatIsNotDue,
        after_its_lease_an_event_is_claimed_again_and_the_attempt_lost => ForgetsLostAttempts | KeepsLeasesForEver,
        an_event_without_attempts_left_is_dead_lettered_by_the_claim => NeverDeadLetters | SendsDeadLetters,
        lowering_max_attempts_dead_letters_an_event_as_exhausted => DeadLettersAlwaysAsLost,
        events_dead_lettered_by_a_claim_count_against_the_limit => DeadLettersDoNotCount,
        concurrent_claimers_never_share_an_event => HandsOutTwice,
        binary_bodies_and_headers_are_returned_unchanged => BytesAsText,
        a_claim_contains_the_age_of_its_event_since_reception => AgesFromTheClaim,
        the_longest_lease_stays_within_the_range_of_timestamps => LongLeasesAreRejected;
    settle:
        a_delivered_event_ends_with_an_attempt_in_its_history => ForgetsRecords | DeliveredStaysOwed,
        a_settlement_is_refused_after_the_event_was_claimed_again => ForgetsTheFence | NeverRefuses,
        a_repeated_settlement_is_refused_and_changes_nothing => NeverRefuses | RecordsWhatItRefuses,
        a_stale_settlement_does_not_affect_its_batch => StaleFailsItsBatch,
        two_settlements_of_one_claim_in_one_batch_settle_it_once => LastOfABatchWins,
        two_claims_of_one_event_in_one_batch_are_distinguished => RefusesByEventAlone,
        settlements_of_unknown_events_and_fences_are_refused => NeverRefuses,
        a_delivery_without_a_record_still_has_an_end_time => BareDeliveryHasNoEntry,
        an_attempt_has_the_time_of_its_end_not_of_its_settlement => EndsWhenItIsSettled;
    redrive:
        a_dead_letter_is_queued_again_with_a_new_budget => RedriveKeepsTheBudget | RedriveForgetsAttempts,
        only_dead_letters_are_redriven => RedrivesWhatIsAlive,
        redriving_an_unknown_event_is_not_found => RedrivesWhatIsNot,
        a_delivered_event_is_redriven_on_request => RedrivesDeliveredAsNew,
        a_claim_before_a_redrive_cannot_settle_the_redriven_event => RedrivesDeliveredUnderAnOldFence,
        redrive_delivered_refuses_events_in_another_status => DeliversAgainWhateverItIs,
        only_one_of_several_concurrent_redrives_of_a_delivered_event_counts => DeliversAgainWhateverItIs;
    find:
        find_shows_an_event_in_each_status => HistoryNewestFirst | RetriesAtOnce,
        find_returns_nothing_for_an_unknown_event => UnknownIsAnError;
    prune:
        delivered_events_and_dead_letters_have_separate_retentions => OneRetention | LeavesAttempts,
        pruning_never_deletes_undelivered_events => PrunesWhatIsOwed,
        pruning_advances_page_by_page_to_the_last_event => IgnoresThePage | PassNeverEnds | PassEndsAtWhatIsYoung,
        ids_from_a_clock_behind_do_not_end_a_pruning_pass => PassEndsAtWhatIsYoung | FrontNeverEnds,
        a_pruned_key_is_new_again => KeysOutliveTheirEvents,
        a_redrive_during_pruning_leaves_an_event_whole_or_deleted => LeavesAttempts,
        a_delivered_event_redriven_during_pruning_is_whole_or_deleted => LeavesAttempts,
        concurrent_prunings_delete_each_event_once => SaysTwiceAsMany;
    erase:
        retention_erases_the_payload_of_a_delivered_event_and_keeps_its_record
            => SaysErasedAndKeeps | ErasesTheFingerprint | ErasesByReception,
        events_that_are_not_delivered_keep_their_payload => ErasesDeadLetters,
        erasing_advances_page_by_page_to_the_last_event => ErasesWithoutThePage,
        an_erased_event_cannot_be_redriven => SendsNothingOnceMore;
    search:
        a_filter_lists_matching_events_newest_first => OldestFirst | ListsEverySource | ListsOneTooFew,
        a_key_and_source_find_one_event => KeyWithoutItsSource,
        pages_have_no_gaps_and_no_repetitions => ListsWithoutThePage | ListsOnePageTooMany,
        a_page_stops_at_its_scan_limit_and_says_where_to_continue => LooksAtAll,
        a_listed_event_has_its_newest_attempt => ListsTheFirstAttempt,
        a_bulk_redrive_takes_only_matching_dead_letters
            => RedrivesWhatDoesNotMatch | RedrivesEverySource | RedriveOfAllKeepsTheBudget,
        a_dry_run_counts_the_redrives_and_changes_nothing => RedrivesOnADryRun,
        concurrent_bulk_redrives_queue_each_letter_once => CountsOnADryRunOnly,
        the_backlog_of_each_source_is_counted_by_status
            => CountsEveryStatusAsQueued | ForgetsSourcesWithoutConfiguration | BehindByWhatIsNotDue,
        a_source_is_behind_by_the_age_of_its_oldest_due_event => BehindByWhatIsNotDue,
        a_count_that_reaches_its_limit_is_partial => CountsWithoutEnd,
        events_of_a_paused_source_are_not_claimed_until_it_is_resumed
            => ForgetsToPause | NeverResumes | PausesEverySource | PausesSettling,
        a_pause_reports_whether_it_changed_anything_and_is_listed => AlwaysSaysChanged | NeverResumes;
    ping:
        a_working_database_answers_a_ping => NeverInOrder,
        a_probe_leaves_nothing_behind => ProbesStay;
    transitions:
        every_transition_matches_the_core => ForgetsTheFence | RetriesAtOnce | ReleaseBurnsItsAttempt;
}

clauses_of_databases! {
    dropped:
        a_dropped_call_leaves_no_transaction_open => DroppedCallsStayOpen;
    schema:
        a_database_without_a_schema_is_unavailable => AlwaysInOrder,
        a_newer_schema_is_refused => AlwaysInOrder,
        a_foreign_schema_is_refused => AlwaysInOrder;
}

beyond_the_port! {
    claim:
        a_delivery_without_its_event_row_does_not_block_others,
        a_manually_inserted_attempt_does_not_block_other_events;
    prune:
        disk_usage_is_constant_under_a_month_of_steady_load;
    schema:
        several_processes_can_migrate_concurrently,
        a_database_created_later_is_used;
}
