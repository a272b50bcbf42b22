//! Batches: the values of several names, of which one call of the loader loads those that are missing.
//!
//! A batch takes part in single flight with each of its names: it leads the fills of all names that no other call
//! fills, loads them at once, and only then waits for the fills that other calls lead. So two batches that overlap never
//! wait for each other.

use std::{collections::HashMap, future::Future, sync::Arc};

use futures_util::future::join_all;

use super::{
    call::{Call, FetchResult, FillResult, LookupResult},
    error::LoadError,
    fill::{FinishOnDrop, LoadHandle},
    value::Answer as _,
    values::Values,
};
use crate::{
    entry::AnyEntry,
    flight::{FlightResult, FlightRole, Leader},
    kernel::RefreshPermit,
    key::IntoName,
    metrics::Event,
    reason::Reason,
    store::{BoxFuture, FillLockState},
};

/// The names that a batch loader has to load, each with its [`LoadHandle`].
#[derive(Debug)]
pub struct Missing<N> {
    names: Vec<N>,
    handles: Vec<LoadHandle>,
}

impl<N> Missing<N> {
    /// Returns the names, without duplicates, in the order of the call.
    pub fn names(&self) -> &[N] {
        &self.names
    }

    /// Returns the names with the handles by which the loader sets the lifetime and the tags of single values.
    pub fn handles(&self) -> impl Iterator<Item = (&N, &LoadHandle)> {
        self.names.iter().zip(&self.handles)
    }

    /// Returns the names alone.
    pub fn into_names(self) -> Vec<N> {
        self.names
    }

    pub(super) fn one(name: N, handle: LoadHandle) -> Self {
        Self { names: vec![name], handles: vec![handle] }
    }

    /// Loads the value of the only name.
    pub(super) async fn load<T, E>(self, load: &BatchLoader<N, T, E>) -> Result<Option<T>, E>
    where
        N: IntoName + Clone,
    {
        let name = self.names[0].clone().into_name();
        load(self).await?.remove(&name).transpose()
    }
}

/// A loader of several names: those that it does not return have no value.
pub(super) type BatchLoader<N, T, E> =
    Arc<dyn Fn(Missing<N>) -> BoxFuture<'static, Result<LoadedValues<T, E>, E>> + Send + Sync>;

/// The values that a batch loader has loaded by their names, or the errors of single names.
pub(super) type LoadedValues<T, E> = HashMap<String, Result<T, E>>;

/// Returns a loader in the form in which batches call it: its values by their names as strings.
pub(super) fn batch_loader<N, T, E, F, Fut, L>(load: F) -> BatchLoader<N, T, E>
where
    N: IntoName + 'static,
    F: Fn(Missing<N>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: IntoIterator<Item = (N, T)>,
{
    Arc::new(move |missing| {
        let loading = load(missing);
        Box::pin(async move {
            let named = |(name, value): (N, T)| (name.into_name(), Ok(value));
            Ok(loading.await?.into_iter().map(named).collect())
        })
    })
}

impl<T: Send + Sync + 'static> Values<T> {
    /// Returns the values of several names, in their order: those that are not in the first level come from the second
    /// in one round trip, and those that are not there either from one call of `load`. For a name that `load` does not
    /// return, the result is `None`, and larder stores a negative result ([`Policy::negative_ttl`]).
    ///
    /// Single flight holds for each name: a name that another call or batch is loading is not loaded twice. `load` runs
    /// again only for names whose other fill has failed or was not storable, and for names that were invalidated meanwhile.
    ///
    /// All values of one call of `load` depend on everything that `load` reads through larder, since larder cannot tell
    /// which value depends on which read.
    ///
    /// [`Policy::negative_ttl`]: crate::Policy::negative_ttl
    ///
    /// # Errors
    ///
    /// The first failure of a name that has no stale value which may be served on errors.
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{Larder, values::Missing};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let stock = larder.values::<u64>(Duration::from_secs(60));
    /// let load = |missing: Missing<(&'static str, u64)>| async move {
    ///     // SELECT id, stock FROM products WHERE id = ANY($1): there is no product 13.
    ///     let rows = missing.into_names().into_iter().filter(|(_, id)| *id != 13);
    ///     Ok::<_, Infallible>(rows.map(|(of, id)| ((of, id), id * 10)).collect::<Vec<_>>())
    /// };
    /// let found = stock.get_or_load_many([("stock", 2), ("stock", 13), ("stock", 1)], load).await?;
    /// let found: Vec<_> = found.iter().map(|value| value.as_deref().copied()).collect();
    /// assert_eq!(found, [Some(20), None, Some(10)]);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("batch", "dataloader", "multi get", "mget", "n+1"))]
    pub async fn get_or_load_many<N, E, F, Fut, L>(
        &self,
        names: impl IntoIterator<Item = N>,
        load: F,
    ) -> Result<Vec<Option<Arc<T>>>, LoadError<E>>
    where
        N: IntoName + Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: Fn(Missing<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<L, E>> + Send + 'static,
        L: IntoIterator<Item = (N, T)>,
    {
        self.get_or_load_batch(names.into_iter().collect(), batch_loader(load)).await
    }

    pub(super) async fn get_or_load_batch<N, E>(
        &self,
        names: Vec<N>,
        load: BatchLoader<N, T, E>,
    ) -> Result<Vec<Option<Arc<T>>>, LoadError<E>>
    where
        N: IntoName + Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
    {
        let mut numbers = HashMap::new();
        let mut unique = Vec::new();
        let mut order = Vec::with_capacity(names.len());
        for name in names {
            let number = *numbers.entry(name.clone().into_name()).or_insert(unique.len());
            if number == unique.len() {
                unique.push(name);
            }
            order.push(number);
        }
        let calls = self.begin_many(unique.iter().cloned()).await;
        let slots = unique.into_iter().zip(calls).map(|(name, (call, bypass))| Slot {
            name,
            call,
            bypass,
            stale: None,
            state: SlotState::Missing,
        });
        let mut batch = Batch { slots: slots.collect(), load };
        batch.look()?;
        if batch.slots.iter().any(|slot| matches!(slot.state, SlotState::Missing)) {
            // It is boxed for the same reason as the loop of a single value.
            let filling: BoxFuture<'_, _> = Box::pin(batch.fill());
            filling.await?;
        }
        let values = batch.finish();
        Ok(order.into_iter().map(|number| values[number].clone()).collect())
    }
}

/// The names of one batch, each with its call.
struct Batch<'a, N, T: 'static, E> {
    slots: Vec<Slot<'a, N, T>>,
    load: BatchLoader<N, T, E>,
}

struct Slot<'a, N, T: 'static> {
    name: N,
    call: Call<'a, T>,
    /// The reason why the call has to bypass the cache, if there is one.
    bypass: Option<Reason>,
    /// The entry that may be served on errors.
    stale: Option<AnyEntry>,
    state: SlotState<T>,
}

enum SlotState<T> {
    Missing,
    /// A fresh entry of the first level. It is added to the enclosing scope at the end.
    Hit(AnyEntry, Option<Arc<T>>),
    /// A stale entry that is served while it is refreshed.
    Stale(AnyEntry, Option<Arc<T>>),
    /// A value that was added to the enclosing scope.
    Done(Option<Arc<T>>),
}

/// A name with its call and its lead, for the task that loads it. Without a leader the value is for the caller alone.
struct Lead<N, T: 'static> {
    name: N,
    call: Call<'static, T>,
    leader: Option<Leader>,
}

impl<N, T, E> Batch<'_, N, T, E>
where
    N: IntoName + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Looks all names up in the first level.
    fn look(&mut self) -> Result<(), LoadError<E>> {
        let mut failed = Ok(());
        for slot in &mut self.slots {
            if let Err(error) = slot.look::<E>() {
                failed = failed.and(Err(error));
            }
        }
        failed
    }

    /// Loads the names that are missing.
    async fn fill(&mut self) -> Result<(), LoadError<E>> {
        let scope = self.slots[0].call.waiting_scope();
        for slot in &mut self.slots {
            slot.call.scope = scope.clone();
        }
        let mut leads = self.lead();
        self.fetch(&mut leads).await;
        self.lock(&mut leads).await;
        self.load(leads).await?;
        self.check();
        self.wait().await?;
        // The waits take time, too.
        self.check();
        self.wait().await
    }

    /// Makes values missing that were invalidated or have expired while this batch waited.
    fn check(&mut self) {
        for slot in &mut self.slots {
            let is_usable = match &slot.state {
                SlotState::Hit(entry, _) => slot.call.is_usable(entry),
                SlotState::Stale(entry, _) => slot.call.is_usable_stale(entry),
                SlotState::Missing | SlotState::Done(_) => true,
            };
            if !is_usable {
                slot.state = SlotState::Missing;
            }
        }
    }

    /// Leads the fills of all missing names that no other call fills.
    fn lead(&mut self) -> Vec<(usize, Leader)> {
        let mut leads = Vec::new();
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.state, SlotState::Missing)
                && slot.bypass.is_none()
                && let Some(leader) = slot.lead()
            {
                leads.push((number, leader));
            }
        }
        leads
    }

    /// Takes the values of leads from the second level, in one round trip.
    async fn fetch(&mut self, leads: &mut Vec<(usize, Leader)>) {
        let is_wanted = |(number, leader): &(usize, Leader)| {
            self.slots[*number].call.is_shared() && !leader.is_alone()
        };
        let wanted: Vec<_> = leads.iter().filter(|lead| is_wanted(lead)).collect();
        if wanted.is_empty() {
            return;
        }
        wanted.iter().for_each(|(_, leader)| leader.look());
        let calls: Vec<_> = wanted.iter().map(|(number, _)| &self.slots[*number].call).collect();
        let fetched = Call::fetch_many(&calls).await;
        let numbers: Vec<_> = wanted.iter().map(|(number, _)| *number).collect();
        let mut fetched: HashMap<_, _> = numbers.into_iter().zip(fetched).collect();
        for (number, leader) in std::mem::take(leads) {
            leader.looked();
            let found = fetched.remove(&number).flatten();
            match found.and_then(|entry| Option::of_entry(&entry).map(|value| (entry, value))) {
                Some((entry, value)) => {
                    let slot = &mut self.slots[number];
                    let value = slot.call.taken(slot.call.fetched(leader, entry, value));
                    slot.state = SlotState::Done(value);
                }
                None => match self.slots[number].call.look_for_stale() {
                    FetchResult::Stale(entry, value) => {
                        leader.finish(FlightResult::Withdrawn);
                        self.slots[number].state = SlotState::Stale(entry, value);
                    }
                    FetchResult::OnError(entry) => {
                        self.slots[number].stale = Some(entry);
                        leads.push((number, leader));
                    }
                    FetchResult::Fresh(..) | FetchResult::Nothing => leads.push((number, leader)),
                },
            }
        }
    }

    /// Takes the fill locks of the leads, if the policy has them. A name whose lock another process holds is waited for
    /// after the load, so that a batch never waits while it holds locks.
    async fn lock(&mut self, leads: &mut Vec<(usize, Leader)>) {
        let call = &self.slots[0].call;
        if call.policy.fill_lock.is_none() || !call.is_shared() {
            return;
        }
        lock_all(call, leads, |(_, leader)| Some(leader)).await;
        // Another process may have stored an entry between the read and the lock.
        self.fetch(leads).await;
    }

    /// Loads the leads and the names that bypass the cache in one call of the loader, in a task of its own.
    async fn load(&mut self, leads: Vec<(usize, Leader)>) -> Result<(), LoadError<E>> {
        let bypassing = self.slots.iter().enumerate();
        let bypassing: Vec<_> = bypassing
            .filter(|(_, slot)| slot.bypass.is_some())
            .map(|(number, _)| (number, None))
            .collect();
        let leads = leads.into_iter().map(|(number, leader)| (number, Some(leader)));
        let (numbers, leads): (Vec<_>, Vec<_>) = leads
            .chain(bypassing)
            .map(|(number, leader)| {
                let Slot { name, call, .. } = &self.slots[number];
                (number, Lead { name: name.clone(), call: call.detached(), leader })
            })
            .unzip();
        let Some(first) = numbers.first() else { return Ok(()) };
        let kernel = self.slots[*first].call.kernel.clone();
        let call = &self.slots[*first].call;
        let loading = load_all(leads, Arc::clone(&self.load));
        let cache = call.policy.cache_name(call.kind);
        let outcomes = match kernel.spawn_fill(cache, false, loading).await {
            Ok(outcomes) => outcomes,
            Err(failed) => return Err(self.slots[*first].call.resume(failed)),
        };
        let mut failed = Ok(());
        for (number, outcome) in numbers.into_iter().zip(outcomes) {
            let slot = &mut self.slots[number];
            match slot.call.outcome(slot.stale.as_ref(), outcome) {
                Ok(value) => slot.state = SlotState::Done(value),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed
    }

    /// Waits for the names that other calls fill; each of them may still have to be loaded here.
    async fn wait(&mut self) -> Result<(), LoadError<E>> {
        let load = &self.load;
        let missing = self.slots.iter_mut().filter(|slot| matches!(slot.state, SlotState::Missing));
        let waiting = missing.map(|slot| async move {
            let (load, name) = (Arc::clone(load), slot.name.clone());
            let load_one =
                move |handle| async move { Missing::one(name, handle).load(&load).await };
            slot.state = SlotState::Done(slot.call.answer(load_one).await?);
            Ok(())
        });
        join_all(waiting).await.into_iter().collect()
    }

    /// Adds the values to the enclosing scope, refreshes those that are stale or due, and returns all of them.
    fn finish(self) -> Vec<Option<Arc<T>>> {
        let mut due = Vec::new();
        let taken = self.slots.into_iter().map(|slot| match slot.state {
            SlotState::Hit(entry, value) => {
                let value = slot.call.hit(&entry, value);
                if slot.call.is_due(&entry) {
                    due.push((slot.name, slot.call, entry));
                }
                value
            }
            SlotState::Stale(entry, value) => {
                slot.call.add_to_whole(&entry, true);
                slot.call.record_served(Event::StaleHit, &entry, slot.call.began);
                due.push((slot.name, slot.call, entry));
                value
            }
            SlotState::Done(value) => value,
            SlotState::Missing => unreachable!("`fill` has loaded each missing name or has failed"),
        });
        let values = taken.collect();
        refresh_all(due, self.load);
        values
    }
}

impl<N, T: Send + Sync + 'static> Slot<'_, N, T> {
    fn look<E: Send + Sync + 'static>(&mut self) -> Result<(), LoadError<E>> {
        if let Some(why) = self.bypass {
            self.call.record(Event::Bypass(why), self.call.began);
            return Ok(());
        }
        match self.call.look::<Option<Arc<T>>, E>()? {
            LookupResult::Fresh(entry, value) => self.state = SlotState::Hit(entry, value),
            LookupResult::Stale(entry, value) => self.state = SlotState::Stale(entry, value),
            LookupResult::OnError(entry) => self.stale = Some(entry),
            LookupResult::Gone(event) => self.call.record(event, self.call.began),
            LookupResult::Nothing => {}
        }
        if !matches!(self.state, SlotState::Missing) {
            return Ok(());
        }
        let Some((note, failure)) = self.call.failed_lately::<E>() else { return Ok(()) };
        if let Some(value) = self.call.fall_back(self.stale.as_ref()) {
            self.state = SlotState::Done(value);
            return Ok(());
        }
        self.call.add_failure(&note);
        Err(failure.into())
    }

    /// Leads the fill of this name. `None` if another call leads it, or if the entry was stored in the meantime.
    fn lead(&mut self) -> Option<Leader> {
        let call = &self.call;
        let leader = if call.was_refused_lately() {
            call.kernel.lead_alone(&call.key, &call.scope)
        } else {
            match call.join() {
                FlightRole::Leader(leader) => leader,
                FlightRole::Waiter(_) | FlightRole::Alone | FlightRole::Circle(_) => return None,
            }
        };
        // Another fill may have ended between the lookup and the lead.
        let looked = call.look::<Option<Arc<T>>, ()>();
        if let Ok(LookupResult::Fresh(entry, value)) = looked {
            leader.finish(FlightResult::Filled(entry.clone()));
            self.state = SlotState::Hit(entry, value);
            return None;
        }
        Some(leader)
    }
}

/// Takes the fill locks of leads, if the policy of `call` has them, and drops the leads whose locks others hold.
async fn lock_all<L, T: Send + Sync + 'static>(
    call: &Call<'_, T>,
    leads: &mut Vec<L>,
    leader: impl Fn(&mut L) -> Option<&mut Leader>,
) {
    let Some(expiry) = call.policy.fill_lock.filter(|_| call.is_shared()) else { return };
    let locking = leads.iter_mut().filter_map(&leader).map(|leader| {
        // A lead that ends without a fill has not failed: its waiters try again.
        leader.look();
        call.kernel.try_lock(&call.scope, leader, expiry)
    });
    let mut states = join_all(locking).await.into_iter();
    leads.retain(|_| states.next().flatten() != Some(FillLockState::Held));
    leads.iter_mut().filter_map(leader).for_each(|leader| leader.looked());
}

/// Runs a loader once for all leads, and ends each of their fills.
async fn load_all<N, T, E>(
    leads: Vec<Lead<N, T>>,
    load: BatchLoader<N, T, E>,
) -> Vec<FillResult<Option<Arc<T>>, E>>
where
    N: IntoName + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let Some(first) = leads.first() else { return Vec::new() };
    let scope = first.call.scope.filling_all(leads.iter().map(|lead| lead.call.key.clone()));
    let mut fills = Vec::with_capacity(leads.len());
    let mut names = Vec::with_capacity(leads.len());
    let mut calls = Vec::with_capacity(leads.len());
    for Lead { name, call, leader } in leads {
        let is_alone = leader.is_none();
        if !is_alone {
            call.note_miss();
        }
        fills.push(LoadHandle::new(&call.policy, leader));
        names.push(name);
        calls.push((call, is_alone));
    }
    let _lands: Vec<_> = fills.iter().map(FinishOnDrop).collect();
    let keys: Vec<_> = names.iter().cloned().map(IntoName::into_name).collect();
    let missing = Missing { names, handles: fills.clone() };
    let loading = scope.clone().scoped(async move { load(missing).await });
    let mut loaded = calls[0].0.limited(loading).await;
    let conclude =
        |(((call, is_alone), fill), key): (((Call<'_, T>, bool), &LoadHandle), String)| {
            let content = match &mut loaded {
                Ok(values) => values.remove(&key).transpose().map_err(|error| call.failed(error)),
                Err(failure) => Err(failure.clone()),
            };
            match is_alone {
                true => call.conclude_alone(fill, &scope, content),
                false => call.conclude(fill, &scope, content),
            }
        };
    calls.into_iter().zip(&fills).zip(keys).map(conclude).collect()
}

/// Refreshes names in the background by one call of the loader, as far as the refresh budget allows. Names whose fill is
/// in flight, and names whose load failed a moment ago, are left out.
fn refresh_all<N, T, E>(due: Vec<(N, Call<'_, T>, AnyEntry)>, load: BatchLoader<N, T, E>)
where
    N: IntoName + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let Some((_, first, _)) = due.first() else { return };
    let kernel = first.kernel.clone().into_owned();
    let scope = first.scope.in_background();
    let mut permits = Vec::new();
    let leads = due.into_iter().filter_map(|(name, call, old)| {
        if call.failed_lately::<E>().is_some() {
            return None;
        }
        match call.kernel.refresh_permit(&old) {
            Ok(permit) => permits.push(permit),
            Err(why) => {
                call.record(Event::Failed(why), call.began);
                return None;
            }
        }
        let FlightRole::Leader(leader) = call.join() else { return None };
        let permit = permits.pop().map(RefreshPermit::leading);
        permits.extend(permit);
        let mut call = call.detached();
        call.scope = scope.clone();
        Some((old, Lead { name, call, leader: Some(leader) }))
    });
    let mut leads: Vec<_> = leads.collect();
    let Some(call) = leads.first().map(|(_, lead)| lead.call.detached()) else { return };
    let cache = call.policy.cache_name(call.kind).to_owned();
    let refreshing = async move {
        fetch_newer(&mut leads).await;
        let mut leads: Vec<_> = leads.into_iter().map(|(_, lead)| lead).collect();
        lock_all(&call, &mut leads, |lead| lead.leader.as_mut()).await;
        drop(load_all(leads, load).await);
        drop(permits);
    };
    drop(kernel.spawn_fill(&cache, true, refreshing));
}

/// Ends the leads whose values another process has refreshed in the second level.
async fn fetch_newer<N, T: Send + Sync + 'static>(leads: &mut Vec<(AnyEntry, Lead<N, T>)>) {
    if !leads.first().is_some_and(|(_, lead)| lead.call.is_shared()) {
        return;
    }
    let calls: Vec<_> = leads.iter().map(|(_, lead)| &lead.call).collect();
    let mut fetched = Call::fetch_many(&calls).await.into_iter();
    for (old, mut lead) in std::mem::take(leads) {
        let found = fetched.next().flatten();
        match found.filter(|entry| lead.call.is_newer(entry, &old)) {
            Some(entry) => {
                lead.leader.take().expect("a refresh leads").finish(FlightResult::Filled(entry));
            }
            None => leads.push((old, lead)),
        }
    }
}
