//! Event ids in production: UUIDs of version 7, from the system's time and entropy.

use crate::ports::Ids;
use surehook_core::id::EventId;
use uuid::Uuid;

/// UUIDs of version 7. Within one process each is greater than the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl Ids for SystemIds {
    fn fresh(&self) -> EventId {
        EventId::from_uuid(Uuid::now_v7())
    }
}

impl SystemIds {
    /// A random seed. The number of the process cannot be the seed: it is 1 in each container.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.fresh().as_uuid().as_u64_pair().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_ascending() {
        let ids: Vec<EventId> = std::iter::repeat_with(|| SystemIds.fresh()).take(1000).collect();
        assert!(ids.iter().all(|id| id.as_uuid().get_version_num() == 7));
        assert!(ids.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn two_processes_have_different_seeds() {
        assert_ne!(SystemIds.seed(), SystemIds.seed());
    }
}
