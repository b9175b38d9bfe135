//! The catalogue of planted bugs: each breaks one promise in one place, to prove that an oracle sees it. A value, not
//! a cfg: the code under test is the production code, and what surrounds it is bent.

/// One planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Bug {
    /// The store answers an accept before it has committed it.
    AckBeforeCommit,
    /// A settlement counts whatever its fence.
    ForgetFence,
    /// A claim locks no row and looks at none again before it commits.
    ClaimWithoutLock,
    /// A claim takes rows whose lease still lasts.
    IgnoreLease,
    /// A lease is shorter than the delivery it covers.
    ShortLease,
    /// The unique constraint is gone.
    NoUniqueness,
    /// The unique constraint forgets the source.
    DedupeWithoutSource,
    /// A claim does not count its attempt.
    RetryWithoutCounting,
    /// A failed event is due again at once.
    RetryWithoutBackoff,
    /// The jitter undercuts the fixed half of the back-off.
    JitterUndercuts,
    /// `Retry-After` is not heeded.
    IgnoreRetryAfter,
    /// A settlement that failed is taken for written.
    DropFailedSettlement,
    /// An accept whose outcome is unknown is tried again as another event.
    UnknownTakenForFailed,
    /// An event with no attempts left is dropped instead of dead-lettered.
    DropExhausted,
    /// One bad row fails its whole batch.
    BatchFailsAsAWhole,
    /// After the database failed once, a process takes nothing in until it is started again.
    IntakeGivesUp,
    /// A shutdown ends without writing down what came back.
    ShutdownDropsInFlight,
    /// A delivery that times out never gives its slot back.
    SlotNeverFrees,
    /// A lost attempt is not recorded.
    LostAttemptForgotten,
    /// The body is passed through a text type on its way.
    BodyThroughText,
    /// Repeated headers are folded into one.
    HeadersFolded,
    /// A source's breaker never opens.
    BreakerNeverOpens,
    /// A breaker lets events through after a quarter of its time.
    BreakerClosesTooSoon,
    /// A source's rate is forgotten.
    RateForgotten,
    /// A claim takes events of a paused source.
    PauseIgnored,
    /// A new event is said to be claimed, and is queued.
    ClaimedInWordsOnly,
    /// What was delivered is queued once more under a fence that was given before.
    RedeliveredUnderAnOldFence,
    /// A replay is answered before the standby has its event.
    ReplayWithoutWaiting,
    /// A commit whose wait for the standby was cancelled is taken for done.
    CancelledCommitTakenForDone,
    /// A delivery is not ended at its deadline.
    DeadlineForgotten,
    /// A lease covers the time-out and nothing else.
    LeaseWithoutGrace,
    /// A replay is answered that its event is queued, whatever it is.
    StatusGuessed,
    /// An operator's pause is answered before it is committed.
    PauseAnsweredEarly,
    /// An event is pruned after half of its retention.
    PruneTooEarly,
    /// Dead letters are never pruned.
    DeadLettersKeptForEver,
    /// Pruning deletes events that wait for their retry.
    PruneOwed,
    /// Erasing takes the payloads of events that wait for their retry.
    EraseOwed,
    /// After a step of retention failed, a process prunes nothing until it is started again.
    RetentionGivesUp,
    /// A process says that its database answers, whether it does or not.
    ReadyWhatever,
    /// `GET /events/{id}` is answered by the standby.
    FindReadsStandby,
    /// Of a batch of settlements the second half is not written.
    SettlesHalfABatch,
    /// A paused source is never resumed.
    ResumeIgnored,
    /// A redrive gives no new budget.
    RedriveWithoutBudget,
    /// An accept of which a part is committed fails as if nothing were.
    PartTakenForNothing,
    /// A process's waits depend on something that no seed decides. Breaks no promise, only the replay.
    LeakedEntropy,
}

impl std::fmt::Display for Bug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(clap::ValueEnum::to_possible_value(self).expect("no bug is hidden").get_name())
    }
}

impl Bug {
    /// All that break a promise.
    pub const ALL: [Self; 44] = [
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
        Self::SlotNeverFrees,
        Self::LostAttemptForgotten,
        Self::BodyThroughText,
        Self::HeadersFolded,
        Self::BreakerNeverOpens,
        Self::BreakerClosesTooSoon,
        Self::RateForgotten,
        Self::PauseIgnored,
        Self::ClaimedInWordsOnly,
        Self::RedeliveredUnderAnOldFence,
        Self::ReplayWithoutWaiting,
        Self::CancelledCommitTakenForDone,
        Self::DeadlineForgotten,
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
        Self::PartTakenForNothing,
    ];
}
