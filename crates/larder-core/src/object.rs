//! Cache-aside for values: look, else load once and keep.

use std::{any::Any, borrow::Cow, fmt, future::Future, io, panic, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tracing::Instrument as _;

use crate::{
    clock::Moment,
    engine::Standing,
    entry::{AnyEntry, Encoded, Value},
    flight::{Joined, Landing, Lead, Wait},
    key::{Key, KeyTooLong, Kind},
    larder::{Draft, Larder},
    lifetime::Lifetime,
    observe::{Event, Meter},
    policy::Policy,
    schema::Schema,
    scope::{Audience, PartOf, Scope},
    shared::Wanted,
    tag::Tag,
};

/// What a loader may say about the value it loads. Handed to the loader; cheap to clone.
#[derive(Clone, Debug)]
pub struct Fill(Arc<Mutex<Wishes>>);

#[derive(Clone, Debug)]
struct Wishes {
    lifetime: Lifetime,
    tags: Vec<Tag>,
    /// Why it is not to be kept, if it is not.
    refused: Option<&'static str>,
}

impl Fill {
    fn new(policy: &Policy) -> Self {
        let wishes = Wishes { lifetime: policy.lifetime, tags: policy.tags.clone(), refused: None };
        Self(Arc::new(Mutex::new(wishes)))
    }

    /// The lifetime of this value, in place of the policy's.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) {
        self.0.lock().lifetime = lifetime.into();
    }

    /// Adds a tag.
    pub fn tag(&self, tag: impl Into<Tag>) {
        self.0.lock().tags.push(tag.into());
    }

    /// This value is not kept, nor is a page it becomes part of.
    pub fn no_store(&self) {
        self.refuse("no-store");
    }

    /// As [`Fill::no_store`], with a reason of its own for those who count.
    pub fn refuse(&self, why: &'static str) {
        self.0.lock().refused.get_or_insert(why);
    }

    fn wishes(&self) -> Wishes {
        self.0.lock().clone()
    }
}

/// A value was not loaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader failed.
    Failed(Arc<E>),
    /// The loader took longer than the policy allows.
    TimedOut {
        /// What the policy allows.
        deadline: Duration,
    },
    /// The name is too long to be kept.
    Key(KeyTooLong),
    /// Under this name lies a value of another type.
    OtherType {
        /// The name.
        key: Box<Key>,
        /// The type of what lies there.
        kept: &'static str,
        /// The type that was asked for.
        asked: &'static str,
    },
    /// The runtime that loaded it was shut down.
    Cancelled,
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "loading failed: {error}"),
            Self::TimedOut { deadline } => write!(f, "loading took longer than {deadline:?}"),
            Self::Key(error) => error.fmt(f),
            Self::OtherType { key, kept, asked } => {
                write!(
                    f,
                    "{key} was asked for as {asked}, but is kept as {kept}: one key, one type"
                )
            }
            Self::Cancelled => f.write_str("the runtime was shut down while the value was loaded"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            Self::Key(error) => Some(error),
            _ => None,
        }
    }
}

/// A value of the application, kept as it is.
struct Object<T> {
    value: Arc<T>,
    weight: usize,
}

impl<T: Serialize> Object<T> {
    fn new(value: T) -> Self {
        // What it takes written out is the best that can be known of a type we have not seen.
        let mut written = Counting(0);
        let counted = rmp_serde::encode::write(&mut written, &value);
        let weight = if counted.is_ok() { written.0 } else { 0 } + size_of::<T>();
        Self { value: Arc::new(value), weight }
    }
}

impl<T: Serialize + DeserializeOwned> Object<T> {
    fn decode(bytes: &Bytes) -> Option<Self> {
        let value = rmp_serde::from_slice(bytes).ok()?;
        Some(Self { value: Arc::new(value), weight: bytes.len() + size_of::<T>() })
    }
}

impl<T: Kept> Value for Object<T> {
    fn weight(&self) -> usize {
        self.weight
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }

    fn encode(&self) -> Option<Encoded> {
        let bytes = rmp_serde::to_vec_named(&*self.value).ok()?;
        Some(Encoded { schema: Schema::of::<T>(), bytes })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Counting(usize);

impl io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What all types that can be kept have in common.
pub(crate) trait Kept: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Kept for T {}

/// One call of [`Larder::get_or_load`].
///
/// It borrows its larder until it has to outlive its caller: the counters of a handle are shared by all threads,
/// and a hit should not touch what they fight over.
#[derive(Clone)]
struct Call<'a> {
    larder: Cow<'a, Larder>,
    key: Key,
    hash: u64,
    policy: Policy,
    kind: Kind,
    name: String,
    scope: Scope,
    began: Moment,
}

/// A loaded value, and the entry it became if it could.
type Loaded<T> = (Arc<T>, Option<AnyEntry>);

pub(crate) async fn get_or_fill<T, E, F, Fut>(
    larder: &Larder,
    kind: Kind,
    name: String,
    policy: Policy,
    load: F,
) -> Result<Arc<T>, LoadError<E>>
where
    T: Kept,
    E: Send + Sync + 'static,
    F: FnOnce(Fill) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let began = larder.tick();
    let caught_up = larder.catch_up(policy.consistency).await;
    // After that: what is read from now on has seen what was waited for.
    let scope = larder.scope();
    let audience = if policy.shared { Audience::Everyone } else { scope.audience() };
    let mut key = larder.key(kind, "");
    key.push(name.as_bytes());
    if let Audience::Partition(of) | Audience::Variant(of) = &audience {
        key.push(of);
    }
    let key = key.finish().map_err(LoadError::Key)?;
    let hash = larder.hash(key.as_bytes());
    let larder = Cow::Borrowed(larder);
    let call = Call { larder, key, hash, policy, kind, name, scope, began };
    if audience == Audience::Unknown {
        call.record(Event::Bypass("identified"), began);
        return call.alone(load).await;
    }
    if !caught_up || call.scope.distrusts() {
        let call = Call { scope: call.scope.clone().distrusting(), ..call };
        call.record(Event::Bypass("unsynchronised"), began);
        return call.alone(load).await;
    }
    call.answer(load).await
}

impl Call<'_> {
    async fn answer<T, E, F, Fut>(&self, load: F) -> Result<Arc<T>, LoadError<E>>
    where
        T: Kept,
        E: Send + Sync + 'static,
        F: FnOnce(Fill) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let arrived = self.larder.sequence();
        let mut stale = None;
        match self.look()? {
            Found::Fresh(value) => return Ok(value),
            Found::Stale(entry, value) => {
                self.refresh(&entry, load);
                return Ok(value);
            }
            Found::OnError(entry) => stale = Some(entry),
            Found::Nothing => {}
        }
        for _ in 0..MAX_LOOKS {
            match self.larder.join((self.hash, &self.key), &self.scope, arrived) {
                Joined::Lead(lead) => return self.lead(lead, stale, load).await,
                Joined::Alone => break,
                Joined::Wait(wait) => match self.wait(wait).await? {
                    Waited::Taken(value) => return Ok(value),
                    Waited::Again => {}
                    Waited::GiveUp => break,
                },
            }
            if let Found::Fresh(value) = self.look()? {
                return Ok(value);
            }
        }
        self.record(Event::Miss, self.began);
        self.alone(load).await
    }

    /// This call, for a task that may outlive its caller.
    fn detached(&self) -> Call<'static> {
        let Self { larder, key, hash, policy, kind, name, scope, began } = self.clone();
        let larder = Cow::Owned(larder.into_owned());
        Call { larder, key, hash, policy, kind, name, scope, began }
    }

    fn metered<R>(&self, act: impl FnOnce(&Meter) -> R) -> R {
        self.larder.with_meter(&self.policy.name, act)
    }

    fn record(&self, event: Event, now: Moment) {
        self.metered(|meter| meter.record(event, now));
    }

    /// What memory has.
    fn look<T: Kept, E>(&self) -> Result<Found<T>, LoadError<E>> {
        let Some(entry) = self.larder.get(self.hash, self.key.as_bytes()) else {
            return Ok(Found::Nothing);
        };
        if !self.is_young(&entry) {
            return Ok(Found::Nothing);
        }
        let now = self.larder.now();
        Ok(match self.larder.standing(&entry, now) {
            Standing::Fresh => {
                let value = self.value(&entry)?;
                self.add_to_whole(&entry, false);
                self.larder.note_hit(&entry);
                self.metered(|meter| meter.record_hit(self.began, || self.larder.now()));
                Found::Fresh(value)
            }
            Standing::WhileRevalidating => {
                let value = self.value(&entry)?;
                self.add_to_whole(&entry, true);
                self.record(Event::StaleHit, now);
                Found::Stale(entry, value)
            }
            Standing::OnError => Found::OnError(entry),
            Standing::Invalid => {
                self.record(Event::Invalid, now);
                self.larder.remove(&entry);
                Found::Nothing
            }
            // Loaders are not asked whether a value is still current.
            Standing::ToRevalidate | Standing::Expired => {
                self.record(Event::Expired, now);
                Found::Nothing
            }
        })
    }

    /// Whether a value is no older than this call takes.
    fn is_young(&self, entry: &AnyEntry) -> bool {
        let age = || self.larder.now().since(entry.ends().filled());
        self.policy.max_age.is_none_or(|longest| age() <= longest)
    }

    async fn wait<T: Kept, E>(&self, mut wait: Wait) -> Result<Waited<T>, LoadError<E>> {
        let Ok(landing) = tokio::time::timeout(self.policy.wait_limit, wait.landing()).await else {
            return Ok(Waited::GiveUp);
        };
        let now = self.larder.now();
        Ok(match landing {
            Landing::Landed(entry) if !self.is_young(&entry) => Waited::Again,
            Landing::Landed(entry)
                if wait.came_early() || self.larder.standing(&entry, now) == Standing::Fresh =>
            {
                let value = self.value(&entry)?;
                self.add_to_whole(&entry, false);
                self.record(Event::Collapsed, now);
                Waited::Taken(value)
            }
            Landing::Landed(_) | Landing::Failed => Waited::Again,
            Landing::Unshared(_) => Waited::GiveUp,
        })
    }

    /// Asks the store, then the origin; that in a task of its own, which whoever hangs up does not stop.
    async fn lead<T, E, F, Fut>(
        &self,
        mut lead: Lead,
        stale: Option<AnyEntry>,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: Kept,
        E: Send + Sync + 'static,
        F: FnOnce(Fill) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        // Somebody may have landed between our look and our lead.
        if let Found::Fresh(value) = self.look()? {
            return Ok(value);
        }
        if let Some(entry) = self.fetch::<T>(&mut lead).await {
            self.record(Event::SharedHit, self.began);
            let value = self.value(&entry)?;
            self.add_to_whole(&entry, false);
            lead.land(Landing::Landed(entry));
            return Ok(value);
        }
        self.record(Event::Miss, self.began);
        if self.policy.tiers.in_memory().is_some() {
            self.larder.note_miss(self.hash);
        }
        let call = self.detached();
        let filling = async move { call.fill(lead, load).await };
        match self.larder.spawn(filling.in_current_span()).await {
            Ok(Ok((value, entry))) => {
                // What is not kept has told its whole itself.
                if let Some(entry) = entry {
                    self.add_to_whole(&entry, false);
                }
                Ok(value)
            }
            Ok(Err(error)) => self.fall_back(stale).ok_or(error),
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => panic::resume_unwind(panic),
                Err(_) => Err(LoadError::Cancelled),
            },
        }
    }

    /// What the shared store has, or another process brings while this one waits its turn.
    async fn fetch<T: Kept>(&self, lead: &mut Lead) -> Option<AnyEntry> {
        let tiers = self.policy.tiers;
        if !self.larder.shares(tiers) {
            return None;
        }
        let wanted = Wanted { key: &self.key, schema: Schema::of::<T>(), tiers };
        let fetch = || self.larder.fetch(wanted, |bytes| Object::<T>::decode(&bytes));
        let young = || async { fetch().await.filter(|entry| self.is_young(entry)) };
        self.larder.fetch_in_turn(lead, self.policy.lease, young).await
    }

    /// Loads, keeps what comes, and tells those who wait.
    async fn fill<T, E, F, Fut>(&self, lead: Lead, load: F) -> Result<Loaded<T>, LoadError<E>>
    where
        T: Kept,
        E: Send + Sync + 'static,
        F: FnOnce(Fill) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let fill = Fill::new(&self.policy);
        let scope = self.scope.filling(self.key.clone());
        let loading = scope.clone().scoped(load(fill.clone()));
        let deadline = self.policy.deadline;
        let value = match tokio::time::timeout(deadline, loading).await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                self.record(Event::Failed("loader"), self.larder.now());
                self.add_unkept(&fill, &scope, "failed-part");
                return Err(LoadError::Failed(Arc::new(error)));
            }
            Err(_) => {
                self.record(Event::Failed("deadline"), self.larder.now());
                self.add_unkept(&fill, &scope, "failed-part");
                return Err(LoadError::TimedOut { deadline });
            }
        };
        let now = self.larder.now();
        self.metered(|meter| meter.record_fill_time(now.since(self.began)));
        let object = Object::new(value);
        let value = Arc::clone(&object.value);
        match self.keep(object, &fill.wishes(), &scope, now) {
            Ok(entry) => {
                lead.land(Landing::Landed(entry.clone()));
                Ok((value, Some(entry)))
            }
            Err(why) => {
                self.record(Event::Refused(why), now);
                self.add_unkept(&fill, &scope, "unkept-part");
                lead.land(Landing::Unshared(why));
                Ok((value, None))
            }
        }
    }

    fn keep<T: Kept>(
        &self,
        object: Object<T>,
        wishes: &Wishes,
        scope: &Scope,
        now: Moment,
    ) -> Result<AnyEntry, &'static str> {
        if let Some(why) = wishes.refused {
            return Err(why);
        }
        let partitioned = matches!(self.scope.audience(), Audience::Partition(_));
        if scope.gathered().private && (self.policy.shared || !partitioned) {
            return Err("private-part");
        }
        let mut tags = vec![self.own_tag()];
        tags.extend(wishes.tags.iter().cloned());
        let draft = Draft {
            key: self.key.clone(),
            tags,
            lifetime: wishes.lifetime,
            age: Duration::ZERO,
            filled: now,
            cost: now.since(self.began),
            tiers: self.policy.tiers,
        };
        let entry = self.larder.entry(draft, scope, object)?;
        let event = match self.larder.keep(&entry) {
            true => Event::Stored,
            false => Event::Refused("overtaken"),
        };
        self.record(event, now);
        Ok(entry)
    }

    /// One refresh behind the request; none when one runs already or the budget is used up.
    fn refresh<T, E, F, Fut>(&self, stale: &AnyEntry, load: F)
    where
        T: Kept,
        E: Send + Sync + 'static,
        F: FnOnce(Fill) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let Some(permit) = self.larder.refresh_permit() else {
            self.record(Event::Failed("refresh-budget"), self.began);
            return;
        };
        let arrived = self.scope.stamp().local;
        let joined = self.larder.join((self.hash, stale.key()), &self.scope, arrived);
        if let Joined::Lead(mut lead) = joined {
            let call = self.detached();
            let refreshing = async move {
                // Another process may have renewed it.
                let fetched = match call.policy.lease {
                    Some(_) => call.fetch::<T>(&mut lead).await,
                    None => None,
                };
                match fetched {
                    Some(entry) => lead.land(Landing::Landed(entry)),
                    None => drop(call.fill(lead, load).await),
                }
                drop(permit);
            };
            drop(self.larder.spawn(refreshing.in_current_span()));
        }
    }

    /// Loads for this caller alone: nothing is shared, nothing is kept.
    async fn alone<T, E, F, Fut>(&self, load: F) -> Result<Arc<T>, LoadError<E>>
    where
        T: Kept,
        F: FnOnce(Fill) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let fill = Fill::new(&self.policy);
        let scope = self.scope.filling(self.key.clone());
        let deadline = self.policy.deadline;
        let loading = scope.clone().scoped(load(fill.clone()));
        let loaded = tokio::time::timeout(deadline, loading).await;
        self.add_unkept(&fill, &scope, "unkept-part");
        match loaded {
            Ok(Ok(value)) => Ok(Arc::new(value)),
            Ok(Err(error)) => Err(LoadError::Failed(Arc::new(error))),
            Err(_) => Err(LoadError::TimedOut { deadline }),
        }
    }

    fn fall_back<T: Kept>(&self, stale: Option<AnyEntry>) -> Option<Arc<T>> {
        let entry = stale?;
        let now = self.larder.tick();
        // Judged again: it may have been invalidated while the loader ran.
        if !matches!(
            self.larder.standing(&entry, now),
            Standing::WhileRevalidating | Standing::OnError
        ) {
            return None;
        }
        self.add_to_whole(&entry, true);
        self.record(Event::StaleOnError, now);
        entry.value::<Object<T>>().map(|object| Arc::clone(&object.value))
    }

    fn value<T: Kept, E>(&self, entry: &AnyEntry) -> Result<Arc<T>, LoadError<E>> {
        match entry.value::<Object<T>>() {
            Some(object) => Ok(Arc::clone(&object.value)),
            None => Err(LoadError::OtherType {
                key: Box::new(self.key.clone()),
                kept: entry.type_name(),
                asked: std::any::type_name::<T>(),
            }),
        }
    }

    /// A value that is not kept leaves its whole with all that it was made of, and not to be kept either.
    fn add_unkept(&self, fill: &Fill, scope: &Scope, why: &'static str) {
        let wishes = fill.wishes();
        let own = std::iter::once(self.own_tag()).chain(wishes.tags);
        let mut gathered = scope.gathered();
        gathered.tags.extend(own.map(|tag| self.larder.own_tag(&tag)));
        gathered.private |= self.scope.audience() == Audience::Unknown && !self.policy.shared;
        self.scope.add_unkept(gathered, why);
    }

    /// The tag of everything under this name.
    fn own_tag(&self) -> Tag {
        Tag::of_name(self.kind, &self.name)
    }

    fn add_to_whole(&self, entry: &AnyEntry, stale: bool) {
        let private =
            !self.policy.shared && matches!(self.scope.audience(), Audience::Partition(_));
        let part = PartOf { cuts: !self.policy.until_invalidated, private, stale };
        self.scope.add_part(entry, part);
    }
}

enum Found<T> {
    Fresh(Arc<T>),
    Stale(AnyEntry, Arc<T>),
    OnError(AnyEntry),
    Nothing,
}

enum Waited<T> {
    Taken(Arc<T>),
    Again,
    GiveUp,
}

/// How often somebody who waits looks again before loading alone.
const MAX_LOOKS: usize = 4;
