//! The functions that the code of `#[cached]` and `#[cached_fragment]` calls. Applications use the attributes.

use std::{convert::Infallible, fmt::Write as _, future::Future};

use larder_core::{LoadError, values::Values};

/// The name of a result, made of the arguments of its function.
#[derive(Debug, Default)]
pub struct KeyText(String);

impl KeyText {
    /// Creates an empty name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends text as it is.
    pub fn text(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// Appends an argument, as [`IntoName`](larder_core::IntoName) appends a member of a tuple.
    pub fn member(&mut self, argument: &(impl KeyPart + ?Sized)) {
        let mut member = String::new();
        argument.write(&mut member);
        push_escaped(&mut self.0, &member);
    }

    /// Appends an argument and a separator.
    pub fn part(&mut self, argument: &(impl KeyPart + ?Sized)) {
        self.member(argument);
        self.0.push(':');
    }

    /// Returns the name.
    pub fn finish(self) -> String {
        self.0
    }
}

/// Percent-encodes the separator, so that no argument is taken for two.
fn push_escaped(out: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            ':' => out.push_str("%3A"),
            '%' => out.push_str("%25"),
            _ => out.push(letter),
        }
    }
}

/// An argument that can be part of a key: two arguments have the same text only if they are equal.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be part of a key",
    note = "name the arguments that count by `key = \"..\"`, or leave this one out by `skip(..)`"
)]
pub trait KeyPart {
    /// Appends the text of the argument.
    fn write(&self, out: &mut String);
}

macro_rules! displayed {
    ($($number:ty)*) => {$(
        impl KeyPart for $number {
            fn write(&self, out: &mut String) {
                write!(out, "{self}").expect("a String takes all that is written");
            }
        }
    )*};
}
displayed!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize bool char);

impl KeyPart for str {
    fn write(&self, out: &mut String) {
        out.push_str(self);
    }
}

impl KeyPart for String {
    fn write(&self, out: &mut String) {
        out.push_str(self);
    }
}

impl<K: KeyPart + ?Sized> KeyPart for &K {
    fn write(&self, out: &mut String) {
        (**self).write(out);
    }
}

impl<K: KeyPart> KeyPart for Option<K> {
    fn write(&self, out: &mut String) {
        self.as_slice().write(out);
    }
}

impl<K: KeyPart> KeyPart for [K] {
    fn write(&self, out: &mut String) {
        write!(out, "{}", self.len()).expect("a String takes all that is written");
        for part in self {
            push_member(out, part);
        }
    }
}

impl<K: KeyPart> KeyPart for Vec<K> {
    fn write(&self, out: &mut String) {
        self.as_slice().write(out);
    }
}

impl<K: KeyPart, const N: usize> KeyPart for [K; N] {
    fn write(&self, out: &mut String) {
        self.as_slice().write(out);
    }
}

impl<A: KeyPart, B: KeyPart, C: KeyPart> KeyPart for (A, B, C) {
    fn write(&self, out: &mut String) {
        push_member(out, &self.0);
        push_member(out, &self.1);
        push_member(out, &self.2);
    }
}

impl<A: KeyPart, B: KeyPart> KeyPart for (A, B) {
    fn write(&self, out: &mut String) {
        push_member(out, &self.0);
        push_member(out, &self.1);
    }
}

fn push_member(out: &mut String, part: &impl KeyPart) {
    let mut member = String::new();
    part.write(&mut member);
    out.push(':');
    push_escaped(out, &member);
}

/// Answers for a function that returns a value.
pub async fn value<T, F, Fut>(values: &Values<T>, name: String, run: F) -> T
where
    T: Clone + Send + Sync + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let load = run.clone();
    match values.get_or_load(name, move |_| async move { Ok::<_, Infallible>(load().await) }).await
    {
        Ok(value) => T::clone(&value),
        Err(_) => run().await,
    }
}

/// Answers for a function that returns an option.
pub async fn optional<T, F, Fut>(values: &Values<T>, name: String, run: F) -> Option<T>
where
    T: Clone + Send + Sync + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Option<T>> + Send + 'static,
{
    let load = run.clone();
    let load = move |_| async move { Ok::<_, Infallible>(load().await) };
    match values.get_or_load_optional(name, load).await {
        Ok(value) => value.as_deref().cloned(),
        Err(_) => run().await,
    }
}

/// Answers for a function that returns a result.
pub async fn result<T, E, F, Fut>(values: &Values<T>, name: String, run: F) -> Result<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let load = run.clone();
    match values.get_or_load(name, move |_| load()).await {
        Ok(value) => Ok(T::clone(&value)),
        Err(LoadError::Failed(error)) => Err(E::clone(&error)),
        Err(_) => run().await,
    }
}

/// Answers for a function that returns a result with an option.
pub async fn optional_result<T, E, F, Fut>(
    values: &Values<T>,
    name: String,
    run: F,
) -> Result<Option<T>, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
{
    let load = run.clone();
    match values.get_or_load_optional(name, move |_| load()).await {
        Ok(value) => Ok(value.as_deref().cloned()),
        Err(LoadError::Failed(error)) => Err(E::clone(&error)),
        Err(_) => run().await,
    }
}

/// Answers for a function that renders.
#[cfg(feature = "axum")]
pub async fn fragment<F, Fut>(
    fragments: &crate::axum::FragmentCache,
    name: String,
    policy: crate::Policy,
    run: F,
) -> String
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = String> + Send + 'static,
{
    let render = run.clone();
    let render = move || async move { Ok::<_, Infallible>(render().await) };
    match fragments.get_or_render(name, policy, render).await {
        Ok(fragment) => String::clone(&fragment),
        Err(_) => run().await,
    }
}

/// Answers for a function that renders or fails.
#[cfg(feature = "axum")]
pub async fn fragment_result<E, F, Fut>(
    fragments: &crate::axum::FragmentCache,
    name: String,
    policy: crate::Policy,
    run: F,
) -> Result<String, E>
where
    E: Clone + Send + Sync + 'static,
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<String, E>> + Send + 'static,
{
    let render = run.clone();
    match fragments.get_or_render(name, policy, render).await {
        Ok(fragment) => Ok(String::clone(&fragment)),
        Err(LoadError::Failed(error)) => Err(E::clone(&error)),
        Err(_) => run().await,
    }
}
