//! The pools of one store share the connections that the server allows it.
//!
//! A server, a database or a role can have a limit of connections. If it is reached, the pools that
//! were first would keep theirs while they are idle, and the others would never get one. So a pool
//! that the server refuses makes the others close their idle connections, and those that are
//! returned while it waits. It then tries again.

use super::servers::{Servers, Sessions};
use crate::store::pool::Pool;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Pause before a refused pool tries again. The server logs each refused connection.
pub(super) const TRY_EVERY: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Lanes {
    pools: OnceLock<Vec<Weak<Pool<Sessions>>>>,
    /// Connections that are being opened and were refused.
    wanting: AtomicUsize,
}

impl Lanes {
    /// Sets the pools. Only the first call has an effect.
    pub(super) fn set<'p>(&self, pools: impl IntoIterator<Item = &'p Arc<Pool<Sessions>>>) {
        let _ = self.pools.set(pools.into_iter().map(Arc::downgrade).collect());
    }

    /// Whether a pool waits for a connection that another one gives back.
    pub(super) fn are_wanting(&self) -> bool {
        self.wanting.load(Ordering::Relaxed) > 0
    }

    /// A pool was refused, and waits until this is dropped.
    pub(super) fn want(self: &Arc<Self>) -> Wanting {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        Wanting(Arc::clone(self))
    }

    /// Closes the idle connections of all pools.
    pub(super) fn give_back_idle(&self, servers: &Servers) {
        for pool in self.pools.get().into_iter().flatten().filter_map(Weak::upgrade) {
            pool.forget_idle();
        }
        if let Ok(mut asking) = servers.asking.try_lock() {
            *asking = None;
        }
    }
}

/// See [`Lanes::want`].
pub(super) struct Wanting(Arc<Lanes>);

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.wanting.fetch_sub(1, Ordering::Relaxed);
    }
}
