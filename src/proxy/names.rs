//! Asks the host for the addresses of endpoints that are names, when [`Watch`] wants to know them.
//!
//! One task looks at the device every [`LOOK_INTERVAL`] while there is such an endpoint, and sleeps otherwise. The host's
//! resolver may take its time, so each question has a thread of its own from the runtime's pool of those that may wait.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::config::Peer;
use super::endpoints::{LOOK_INTERVAL, Question, Watch};
use crate::device::Device;
use crate::device::config::Update;

/// Endpoints that are names, and the device that is told what they stand for.
pub(super) struct Names {
    watch: Mutex<Watch>,
    changed: Notify,
    device: Weak<Device>,
}

impl Names {
    /// Of that device, without any name yet.
    pub(super) fn new(device: &Arc<Device>) -> Arc<Self> {
        Arc::new(Self { watch: Mutex::default(), changed: Notify::new(), device: Arc::downgrade(device) })
    }

    /// From now on these peers count.
    pub(super) fn set_peers(&self, peers: &[Peer]) {
        self.watch().set_peers(peers);
        self.changed.notify_one();
    }

    /// Asks for all names for the first time, and waits for the answers until `limit` is over; what is late still counts.
    pub(super) async fn ask_first(self: &Arc<Self>, limit: Duration) {
        let questions = self.look().unwrap_or_default();
        let asked: Vec<_> =
            questions.into_iter().map(|question| tokio::spawn(Arc::clone(self).ask(question))).collect();
        let all = async {
            for asked in asked {
                // A panic there was told by its hook.
                let _ = asked.await;
            }
        };
        let _ = tokio::time::timeout(limit, all).await;
    }

    /// Resolves names whenever it is time to, for as long as there is the device. Must be run within a tokio runtime;
    /// questions under way end with it.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut asked = JoinSet::new();
        while let Some(questions) = self.look() {
            for question in questions {
                asked.spawn(Arc::clone(&self).ask(question));
            }
            if self.watch().is_empty() {
                self.changed.notified().await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.changed.notified() => {}
            }
            while asked.try_join_next().is_some() {}
        }
    }

    /// What is to be asked now; `None` when the device is gone.
    fn look(&self) -> Option<Vec<Question>> {
        let snapshot = self.device.upgrade()?.snapshot();
        // A clock before 1970 makes every handshake young, until it is set.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(self.watch().look(&snapshot, since_1970, Instant::now()))
    }

    async fn ask(self: Arc<Self>, question: Question) {
        let (peer, target) = (question.peer, &question.target);
        let found = tokio::net::lookup_host((target.host.to_string(), target.port)).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                tracing::warn!(%peer, "The endpoint {target} cannot be resolved: {error}; it is tried again");
                Vec::new()
            }
        };
        let Some(device) = self.device.upgrade() else { return };
        let Some(update) = self.watch().answer(&question, &addresses, &device.snapshot()) else { return };
        let endpoint = update.endpoint;
        match device.apply(Update { peers: vec![update], ..Update::default() }) {
            Ok(()) => {
                let endpoint = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
                tracing::info!(%peer, "The endpoint {target} is {endpoint}");
            }
            Err(error) => tracing::error!(%peer, "The endpoint {target} cannot be set: {error}"),
        }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        // Each call leaves it whole.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
