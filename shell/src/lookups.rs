//! DNS lookups of destinations, at most one at a time for each name.
//!
//! A DNS lookup by the system blocks a thread until the name servers answer or time out. This can
//! be long after the delivery's deadline. The threads are shared by the whole process, and tokio
//! has 512 of them. So the deliveries to one name share its lookup. A name whose servers do not
//! answer uses one thread, whatever the concurrency and the retries of its sources are, and no
//! other name waits for it.
//!
//! This is not a cache: a request after the end of a lookup starts another one.

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// The lookups in progress, and the function that starts one.
pub(crate) struct Lookups<F> {
    look_up: F,
    /// One entry for each name. It is valid while its sender exists, which is as long as the lookup
    /// takes.
    under_way: Mutex<BTreeMap<String, watch::Receiver<Option<Found>>>>,
}

/// Lookups with the system's resolver.
pub(crate) fn system() -> impl Resolve {
    Lookups::new(|name: String| {
        async move { tokio::net::lookup_host((name.as_str(), 0)).await.map(Iterator::collect) }
            .boxed()
    })
}

impl<F: Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>> Lookups<F> {
    fn new(look_up: F) -> Self {
        Self { look_up, under_way: Mutex::default() }
    }

    /// The pending result for this name: of the lookup in progress, or of a new one. A lookup
    /// continues even if no caller waits for it.
    fn join(&self, name: &str) -> watch::Receiver<Option<Found>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = under_way.get(name)
            && lookup.has_changed().is_ok()
        {
            return lookup.clone();
        }
        let (sender, lookup) = watch::channel(None);
        let found = (self.look_up)(name.to_owned());
        tokio::spawn(async move { sender.send_replace(Some(found.await.map_err(Arc::new))) });
        under_way.insert(name.to_owned(), lookup.clone());
        lookup
    }
}

impl<F: Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync> Resolve
    for Lookups<F>
{
    fn resolve(&self, name: Name) -> Resolving {
        let mut lookup = self.join(name.as_str());
        async move {
            match lookup.wait_for(Option::is_some).await.map(|found| found.clone()) {
                Ok(Some(Ok(addresses))) => Ok(Box::new(addresses.into_iter()) as Addrs),
                Ok(Some(Err(error))) => Err(error.into()),
                Ok(None) | Err(_) => Err("the DNS lookup ended without a result".into()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// Lookups that each wait for a permit, and the number of started lookups.
    fn held() -> (Arc<Semaphore>, Arc<AtomicUsize>, impl Resolve) {
        let (permits, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let lookups = Lookups::new({
            let (permits, begun) = (Arc::clone(&permits), Arc::clone(&begun));
            move |name: String| {
                begun.fetch_add(1, Ordering::Relaxed);
                let permits = Arc::clone(&permits);
                async move {
                    permits.acquire().await.unwrap().forget();
                    assert_ne!(name, "breaks.test", "this lookup panics on purpose");
                    if name == "unknown.test" {
                        Err(io::Error::other("no such name"))
                    } else {
                        Ok(vec![([10, 0, 0, 1], 0).into()])
                    }
                }
                .boxed()
            }
        });
        (permits, begun, lookups)
    }

    fn resolve(lookups: &impl Resolve, name: &str) -> Resolving {
        lookups.resolve(name.parse().ok().unwrap())
    }

    async fn told(resolving: Resolving) -> Result<usize, String> {
        resolving.await.map(Iterator::count).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn concurrent_requests_for_a_name_share_one_lookup() {
        let (permits, begun, lookups) = held();
        let asking: Vec<_> = (0..100).map(|_| resolve(&lookups, "slow.test")).collect();
        let other = resolve(&lookups, "unknown.test");
        assert_eq!(begun.load(Ordering::Relaxed), 2, "one for each name");
        permits.add_permits(2);
        for asked in asking {
            assert_eq!(told(asked).await, Ok(1));
        }
        assert_eq!(told(other).await, Err("no such name".to_owned()));
    }

    #[tokio::test]
    async fn a_lookup_continues_after_its_requests_are_cancelled() {
        let (permits, begun, lookups) = held();
        for _ in 0..100 {
            assert!(resolve(&lookups, "slow.test").now_or_never().is_none());
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        let asked = resolve(&lookups, "slow.test");
        permits.add_permits(1);
        assert_eq!(told(asked).await, Ok(1));
    }

    #[tokio::test]
    async fn a_request_after_a_lookup_starts_another() {
        for (name, ended) in [
            ("well.test", Ok(1)),
            ("unknown.test", Err("no such name")),
            ("breaks.test", Err("the DNS lookup ended without a result")),
        ] {
            let (permits, begun, lookups) = held();
            permits.add_permits(2);
            for time in 1..=2 {
                assert_eq!(
                    told(resolve(&lookups, name)).await,
                    ended.map_err(str::to_owned),
                    "{name}"
                );
                tokio::task::yield_now().await;
                assert_eq!(begun.load(Ordering::Relaxed), time, "{name}");
            }
        }
    }
}
