//! Deliberately wrong stores. Each breaks one promise of the port and keeps the others. A clause
//! must fail on the store that breaks what it guards. Otherwise it proves nothing.

mod accept;
mod claim;
mod database;
mod maintenance;
mod operators;
mod settle;

pub(crate) use database::{LeakyStore, WrongDatabase};

use futures::FutureExt;
use futures::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::ports::{EventStore, NewEvent, Store, StoreCall};
use surehook_core::admission::Stored;
use surehook_core::id::EventId;
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::memory::MemoryStore;

/// How a store on top of the model database is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    // Accepting.
    NewIsDueLater,
    SaysClaimedAndQueues,
    ClaimsTheWholeBatch,
    SaysClaimedAtAnotherTime,
    ClaimsWhatIsNewOfAPausedSource,
    AnswersBeforeItStores,
    NoUniqueness,
    DeadlocksUnlessSorted,
    OwnIdIsRejected,
    DuplicateFailsItsBatch,
    AnswersInTheOrderOfKeys,
    DedupesWithoutSource,
    ExistingIsAlwaysQueued,
    KeepsTheNewestBody,
    PartOfARejectedBatchStays,
    NothingIsRejected,
    // Claiming.
    NewestFirst,
    IgnoresLimits,
    IgnoresBytes,
    OneBoundOfBytesForAll,
    WeighsEachAlone,
    WeighsBodiesAlone,
    WeighsNoQueries,
    WeighsDeadLetters,
    SkipsWhatDoesNotFit,
    SaysNothingOfWhatDoesNotFit,
    FenceStaysAtAClaim,
    AttemptStaysAtAClaim,
    NoLease,
    OneLeaseForAll,
    OneLimitForAll,
    ClaimsWhatIsNotDue,
    ForgetsLostAttempts,
    KeepsLeasesForEver,
    NeverDeadLetters,
    SendsDeadLetters,
    DeadLettersAlwaysAsLost,
    DeadLettersDoNotCount,
    HandsOutTwice,
    BytesAsText,
    ForgetsQueries,
    LongLeasesAreRejected,
    AgesFromTheClaim,
    ReceivedAtTheClaim,
    ReceivedAtTheRedrive,
    // Settling.
    ForgetsRecords,
    DeliveredStaysOwed,
    ForgetsTheFence,
    NeverRefuses,
    RecordsWhatItRefuses,
    StaleFailsItsBatch,
    LastOfABatchWins,
    RefusesByEventAlone,
    BareDeliveryHasNoEntry,
    EndsWhenItIsSettled,
    RetriesAtOnce,
    ReleaseBurnsItsAttempt,
    // Redriving.
    RedriveKeepsTheBudget,
    RedriveForgetsAttempts,
    RedrivesWhatIsAlive,
    RedrivesWhatIsNot,
    RedrivesDeliveredAsNew,
    RedrivesDeliveredUnderAnOldFence,
    DeliversAgainWhateverItIs,
    // Finding.
    HistoryNewestFirst,
    UnknownIsAnError,
    ShowsNoQuery,
    ShowsTheBodyAsText,
    ReceivedWhenItIsShown,
    ShowsErasedAsEmpty,
    // Pruning.
    OneRetention,
    LeavesAttempts,
    PrunesWhatIsOwed,
    IgnoresThePage,
    PassNeverEnds,
    PassEndsAtWhatIsYoung,
    FrontNeverEnds,
    KeysOutliveTheirEvents,
    SaysTwiceAsMany,
    ErasesDeadLetters,
    ErasesTheFingerprint,
    SaysErasedAndKeeps,
    ErasesByReception,
    ErasesAllButTheQuery,
    ErasesWithoutThePage,
    SendsNothingOnceMore,
    // Capping due times.
    CapsNothing,
    CapsWithinTheHorizon,
    CapsToNow,
    CapsEverySource,
    CapChangesTheFence,
    OneHorizonForAll,
    OneLeaseForAllCaps,
    CapsTheLatestFirst,
    CapsWithoutLimit,
    // Searching.
    OldestFirst,
    ListsEverySource,
    ListsWithoutThePage,
    ListsOnePageTooMany,
    ListsOneTooFew,
    KeyWithoutItsSource,
    KeyInOneSource,
    NamesOnlySourcesWithWork,
    ListsTheFirstAttempt,
    LooksAtAll,
    RedrivesOnADryRun,
    RedrivesWhatDoesNotMatch,
    RedrivesEverySource,
    RedriveOfAllKeepsTheBudget,
    CountsOnADryRunOnly,
    RedrivesNameOneSource,
    // Discarding.
    DiscardsNothing,
    DiscardEndsAnew,
    DiscardForgetsAttempts,
    DiscardKeepsTheFence,
    DiscardRecordsNoLostAttempt,
    DiscardOutlivesARedrive,
    DiscardsInEveryScope,
    DiscardsNoWaitingEvents,
    DiscardsInFlight,
    DiscardsWhatIsNot,
    DiscardsEverySource,
    DiscardsWhatDoesNotMatch,
    DiscardsOnADryRun,
    RedriveLeavesDiscarded,
    RedrivesDiscardedWithOthers,
    CountsDiscarded,
    SummarizesDiscarded,
    // Recording actions.
    RecordsNoRedrive,
    RecordsNoRedelivery,
    RecordsNoDiscard,
    RecordsNoBulkRedrive,
    RecordsNoBulkDiscard,
    RecordsReplaysAsOperators,
    RecordsTheTimeOfTheEnd,
    RecordsRefusedActions,
    RecordsOnADryRun,
    ActionsNewestFirst,
    ActionsWithoutAttempts,
    ListsActions,
    LeavesActions,
    // Summaries.
    GroupsWhatIsDelivered,
    GroupsEverySource,
    GroupsByTheFirstAttempt,
    GroupsWhatFailedBefore,
    GroupsByTheWholeExcerpt,
    GroupsWithoutTheExcerpt,
    GroupsSmallestFirst,
    SaysThatAllWasExamined,
    LooksAtAllFailures,
    LooksAtOneEndOnly,
    // Sources.
    CountsEveryStatusAsQueued,
    CountsWithoutEnd,
    ForgetsSourcesWithoutConfiguration,
    BehindByWhatIsNotDue,
    ForgetsToPause,
    NeverResumes,
    PausesEverySource,
    PausesSettling,
    AlwaysSaysChanged,
    // Pings and probes.
    NeverInOrder,
    ProbesStay,
}

impl Wrong {
    /// One process's handle on a store that is wrong in this way.
    pub(crate) fn store(self, memory: Arc<MemoryStore>) -> Arc<dyn Store> {
        Arc::new(WrongStore {
            memory,
            wrong: self,
            unwritten: Mutex::default(),
            given_out: Mutex::default(),
        })
    }
}

/// Runs a clause on a wrong store. Panics unless the clause fails.
pub(crate) async fn assert_fails(clause: impl Future<Output = ()> + Send + 'static, wrong: &str) {
    let clause = tokio::time::timeout(Duration::from_mins(1), tokio::spawn(clause));
    match clause
        .await
        .unwrap_or_else(|_| panic!("the clause does not finish on the wrong store `{wrong}`"))
    {
        Ok(()) => panic!(
            "the clause passes on the wrong store `{wrong}`: it does not check what it guards"
        ),
        Err(failed) => assert!(failed.is_panic(), "{failed}"),
    }
}

struct WrongStore {
    memory: Arc<MemoryStore>,
    wrong: Wrong,
    /// Events that were answered and not stored.
    unwritten: Mutex<Vec<NewEvent>>,
    /// Claims that were returned once and will be returned again.
    given_out: Mutex<Option<Claims>>,
}

impl EventStore for WrongStore {
    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        ready(self.wrong_accept(batch)).boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        ready(self.wrong_claim(demands)).boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        ready(self.wrong_settle(batch)).boxed()
    }
}
