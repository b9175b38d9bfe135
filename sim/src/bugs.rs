//! The planted bugs. Each one breaks one promise in one place, to prove that an oracle finds it. A
//! bug is a run-time value, not a `cfg`: the code under test is the production code, and only the
//! code around it changes.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Bug {
    /// The store answers an accept before it has committed it.
    AckBeforeCommit,
    /// A settlement with any fence is accepted.
    ForgetFence,
    /// A claim locks no rows and does not check them again before it commits.
    ClaimWithoutLock,
    /// A claim takes rows whose lease has not ended.
    IgnoreLease,
    /// A lease is shorter than the delivery that it covers.
    ShortLease,
    /// The unique constraint is missing.
    NoUniqueness,
    /// The unique constraint ignores the source.
    DedupeWithoutSource,
    /// A claim does not count its attempt.
    RetryWithoutCounting,
    /// A failed event is due again immediately.
    RetryWithoutBackoff,
    /// Jitter also reduces the fixed half of the back-off.
    JitterUndercuts,
    /// `Retry-After` is ignored.
    IgnoreRetryAfter,
    /// A failed settlement is treated as written.
    DropFailedSettlement,
    /// An accept with an unknown outcome is tried again under a new event id.
    UnknownTakenForFailed,
    /// An event without attempts left is deleted instead of dead-lettered.
    DropExhausted,
    /// One bad row fails its whole batch.
    BatchFailsAsAWhole,
    /// After one failure of the database, a process accepts nothing until it is restarted.
    IntakeGivesUp,
    /// A shutdown does not write the results of the last deliveries.
    ShutdownDropsInFlight,
    /// A shutdown cuts off deliveries in flight after an eighth of their time.
    ShutdownGivesUpEarly,
    /// A process refuses webhooks from the beginning of its shutdown.
    DrainRefuses,
    /// A process closes its listener at the beginning of its shutdown.
    ListenerClosesFirst,
    /// A reload changes nothing.
    ReloadIgnored,
    /// A reload ends deliveries in flight as failed.
    ReloadCutsDeliveries,
    /// A process refuses webhooks for a second after a reload.
    ReloadRefuses,
    /// A delivery that times out never frees its slot.
    SlotNeverFrees,
    /// A lost attempt is not recorded.
    LostAttemptForgotten,
    /// The body passes through a text type.
    BodyThroughText,
    /// Repeated headers are merged into one.
    HeadersFolded,
    /// The query of a request is not forwarded.
    QueryDropped,
    /// A handshake is stored as an event.
    HandshakeStored,
    /// Events are relayed.
    EventsRelayed,
    /// A delivery carries the time of its claim instead of that of its event.
    ReceivedAtTheClaim,
    /// A source's breaker never opens.
    BreakerNeverOpens,
    /// Refusals never open a breaker.
    RefusalsNeverOpen,
    /// Twice as many refusals as configured open a breaker.
    RefusalsOpenLate,
    /// A breaker admits events after a quarter of its open time.
    BreakerClosesTooSoon,
    /// A source's rate is ignored.
    RateForgotten,
    /// Claims start at the last claimed row, and never at the front again.
    CursorNeverReturns,
    /// A claim takes events of a paused source.
    PauseIgnored,
    /// A new event is reported as claimed, but stays queued.
    ClaimedInWordsOnly,
    /// A redriven delivered event is queued with a fence that it had before.
    RedeliveredUnderAnOldFence,
    /// A replay is answered before the standby has its event.
    ReplayWithoutWaiting,
    /// A commit whose wait for the standby was cancelled is treated as successful.
    CancelledCommitTakenForDone,
    /// A delivery does not end at its deadline.
    DeadlineForgotten,
    /// A delivery that succeeds is sent again as the same attempt.
    DeliversTwice,
    /// A lease covers the timeout only, without grace and allowance.
    LeaseWithoutGrace,
    /// A replay is always answered with the status queued.
    StatusGuessed,
    /// An operator's pause is answered before it is committed.
    PauseAnsweredEarly,
    /// An event is pruned after half of its retention.
    PruneTooEarly,
    /// Dead letters are never pruned.
    DeadLettersKeptForEver,
    /// Pruning also deletes events that wait for a retry.
    PruneOwed,
    /// Erasing also removes the payloads of events that wait for a retry.
    EraseOwed,
    /// After a failed step of retention, a process prunes nothing until it is restarted.
    RetentionGivesUp,
    /// A process always reports that its database answers.
    ReadyWhatever,
    /// `GET /events/{id}` reads from the standby.
    FindReadsStandby,
    /// The second half of a batch of settlements is not written.
    SettlesHalfABatch,
    /// A paused source is never resumed.
    ResumeIgnored,
    /// A redrive gives no new budget.
    RedriveWithoutBudget,
    /// A redrive of many events takes discarded ones.
    RedriveTakesDiscarded,
    /// A discard takes events whose lease has not ended.
    DiscardsInFlight,
    /// A redrive or a discard is not recorded.
    ActionForgotten,
    /// A replay of a dead letter does not queue it again, although its source is configured to.
    ReplayRedrivesNothing,
    /// A partly committed accept fails as if nothing were committed.
    PartTakenForNothing,
    /// Due times beyond the horizon are never capped.
    DueTimesNotCapped,
    /// A capped event is due at once, although it may be in flight.
    CappedToNow,
    /// A restarted process keeps the settings of its first start.
    RestartKeepsSettings,
    /// A claim ignores how many bytes the process can take.
    ClaimIgnoresBytes,
    /// A process's memory for deliveries has room for one event only.
    OneEventInMemory,
    /// A process reads its requests one after the other.
    OneRequestAtATime,
    /// The memory for requests has no part that is reserved for each source.
    NoReservedMemory,
    /// A process's waits depend on data that the seed does not determine. This breaks no promise,
    /// only reproducibility.
    LeakedEntropy,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            clap::ValueEnum::to_possible_value(self)
                .expect("every bug has a name on the command line")
                .get_name(),
        )
    }
}

impl Bug {
    /// All bugs that break a promise.
    pub const ALL: [Self; 69] = [
        Self::AckBeforeCommit,
        Self::ForgetFence,
        Self::ClaimWithoutLock,
        Self::IgnoreLease,
        Self::ShortLease,
        Self::NoUniqueness,
        Self::DedupeWithoutSource,
        Self::RetryWithoutCounting,
        Self::RetryWithoutBackoff,
        Self::JitterUndercuts,
        Self::IgnoreRetryAfter,
        Self::DropFailedSettlement,
        Self::UnknownTakenForFailed,
        Self::DropExhausted,
        Self::BatchFailsAsAWhole,
        Self::IntakeGivesUp,
        Self::ShutdownDropsInFlight,
        Self::ShutdownGivesUpEarly,
        Self::DrainRefuses,
        Self::ListenerClosesFirst,
        Self::ReloadIgnored,
        Self::ReloadCutsDeliveries,
        Self::ReloadRefuses,
        Self::SlotNeverFrees,
        Self::LostAttemptForgotten,
        Self::BodyThroughText,
        Self::HeadersFolded,
        Self::QueryDropped,
        Self::HandshakeStored,
        Self::EventsRelayed,
        Self::ReceivedAtTheClaim,
        Self::BreakerNeverOpens,
        Self::RefusalsNeverOpen,
        Self::RefusalsOpenLate,
        Self::BreakerClosesTooSoon,
        Self::RateForgotten,
        Self::CursorNeverReturns,
        Self::PauseIgnored,
        Self::ClaimedInWordsOnly,
        Self::RedeliveredUnderAnOldFence,
        Self::ReplayWithoutWaiting,
        Self::CancelledCommitTakenForDone,
        Self::DeadlineForgotten,
        Self::DeliversTwice,
        Self::LeaseWithoutGrace,
        Self::StatusGuessed,
        Self::PauseAnsweredEarly,
        Self::PruneTooEarly,
        Self::DeadLettersKeptForEver,
        Self::PruneOwed,
        Self::EraseOwed,
        Self::RetentionGivesUp,
        Self::ReadyWhatever,
        Self::FindReadsStandby,
        Self::SettlesHalfABatch,
        Self::ResumeIgnored,
        Self::RedriveWithoutBudget,
        Self::RedriveTakesDiscarded,
        Self::DiscardsInFlight,
        Self::ActionForgotten,
        Self::ReplayRedrivesNothing,
        Self::PartTakenForNothing,
        Self::DueTimesNotCapped,
        Self::CappedToNow,
        Self::RestartKeepsSettings,
        Self::ClaimIgnoresBytes,
        Self::OneEventInMemory,
        Self::OneRequestAtATime,
        Self::NoReservedMemory,
    ];
}
