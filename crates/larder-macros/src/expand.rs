//! The expansion: a hidden function with the original body, and a function with the original signature that asks larder
//! first.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, FnArg, GenericArgument, GenericParam, Ident, ImplItemFn, Pat, PathArguments,
    ReceiverKind, ReturnType, Type, parse_quote,
};

use crate::{
    options::Options,
    text::{Piece, pieces},
};

/// The kind of the results.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Value,
    Fragment,
}

impl Target {
    fn attribute(self) -> &'static str {
        match self {
            Self::Value => "cached",
            Self::Fragment => "cached_fragment",
        }
    }

    /// The type of the cache that the function takes.
    fn cache(self) -> &'static str {
        match self {
            Self::Value => "Larder",
            Self::Fragment => "FragmentCache",
        }
    }

    /// The option and field that name the cache.
    fn field(self) -> &'static str {
        match self {
            Self::Value => "larder",
            Self::Fragment => "fragments",
        }
    }
}

/// Expands an attribute. Misuse becomes a compile error beside the unchanged function.
pub(crate) fn function(
    options: TokenStream,
    function: &TokenStream,
    target: Target,
) -> TokenStream {
    let expanded = Options::parse(options).and_then(|options| {
        // A method parses as a function, too, and both may have a visibility.
        let function: ImplItemFn = syn::parse2(function.clone())?;
        expanded(&options, &function, target)
    });
    expanded.unwrap_or_else(|error| {
        let error = error.to_compile_error();
        quote! { #error #function }
    })
}

/// An argument of the function.
struct Argument<'a> {
    name: &'a Ident,
    is_reference: bool,
    is_cache: bool,
}

/// The return type of the function.
enum Results<'a> {
    Plain(&'a Type),
    Optional(&'a Type),
    Fallible(&'a Type),
    FallibleOptional(&'a Type),
}

fn expanded(
    options: &Options,
    function: &ImplItemFn,
    target: Target,
) -> Result<TokenStream, Error> {
    let signature = &function.sig;
    let attribute = target.attribute();
    if signature.asyncness.is_none() {
        let message =
            format!("`{attribute}` needs an async function, because a miss waits for its load");
        return Err(Error::new_spanned(signature.fn_token, message));
    }
    let is_method = signature.receiver().is_some();
    if let Some(receiver) = signature.receiver()
        && !matches!(receiver.kind, ReceiverKind::Reference(_, _, None))
    {
        let message = format!(
            "`{attribute}` needs `&self`: a load may outlive its caller, so it works on a clone of `self`"
        );
        return Err(Error::new_spanned(receiver, message));
    }
    if is_method && options.key.is_none() && options.namespace.is_none() {
        return Err(Error::new_spanned(
            &signature.ident,
            "a method needs `key = \"..\"`, or `namespace = ..` with an expression that distinguishes two values of its type: otherwise two of them would answer for each other",
        ));
    }
    if target == Target::Fragment && (options.is_local || options.negative_ttl.is_some()) {
        let message = "`local` and `negative_ttl` have no effect on a fragment, which is text";
        return Err(Error::new_spanned(&signature.ident, message));
    }
    let arguments = arguments(function, target)?;
    let names: Vec<&Ident> = arguments.iter().map(|argument| argument.name).collect();
    for skipped in &options.skip {
        if !names.contains(&skipped) {
            return Err(Error::new_spanned(skipped, format!("`{skipped}` names no argument")));
        }
    }
    let cache = cache(options, &arguments, is_method, target, function)?;
    let name = name(options, function, &arguments)?;
    let policy = policy(options, &names)?;
    let results = results(function)?;

    let (visibility, attributes, body) = (&function.vis, &function.attrs, &function.block);
    let hidden = format_ident!("__{}_uncached", signature.ident);
    let mut original = signature.clone();
    original.ident = hidden.clone();
    let parameters: Vec<&Ident> = signature
        .generics
        .params
        .iter()
        .filter_map(|parameter| match parameter {
            GenericParam::Type(parameter) => Some(&parameter.ident),
            GenericParam::Const(parameter) => Some(&parameter.ident),
            GenericParam::Lifetime(_) => None,
        })
        .collect();
    let turbofish = (!parameters.is_empty()).then(|| quote! { ::<#(#parameters),*> });

    let caches =
        arguments.iter().filter(|argument| argument.is_cache).map(|argument| argument.name);
    let statements = &body.stmts;

    // The load may outlive the caller, so it owns its arguments.
    let owned = arguments.iter().map(|argument| {
        let name = argument.name;
        match argument.is_reference {
            true => quote! { let #name = ::std::borrow::ToOwned::to_owned(#name); },
            false => quote! { let #name = ::std::clone::Clone::clone(&#name); },
        }
    });
    let again = names.iter().map(|name| quote! { let #name = ::std::clone::Clone::clone(&#name); });
    let passed = arguments.iter().map(|argument| {
        let name = argument.name;
        if argument.is_reference {
            quote! { &#name }
        } else {
            quote! { #name }
        }
    });
    let (this, this_again, call) = match is_method {
        true => (
            quote! { let __this = ::std::clone::Clone::clone(self); },
            quote! { let __this = ::std::clone::Clone::clone(&__this); },
            quote! { __this.#hidden #turbofish(#(#passed),*) },
        ),
        false => (quote! {}, quote! {}, quote! { #hidden #turbofish(#(#passed),*) }),
    };
    let run = quote! {
        {
            #this
            #(#owned)*
            move || {
                #this_again
                #(#again)*
                async move { #call.await }
            }
        }
    };
    let answer = answer(options, target, &results, &cache);
    Ok(quote! {
        #[doc(hidden)]
        #[allow(clippy::unused_async, reason = "the original function is async")]
        #original {
            // Often only the cache needs it.
            #(let _ = &#caches;)*
            #(#statements)*
        }

        #(#attributes)*
        #visibility #signature {
            let __policy = #policy;
            let __name = #name;
            let __run = #run;
            #answer
        }
    })
}

fn arguments(function: &ImplItemFn, target: Target) -> Result<Vec<Argument<'_>>, Error> {
    let mut arguments = Vec::new();
    for argument in &function.sig.inputs {
        let FnArg::Typed(typed) = argument else { continue };
        let Pat::Ident(pattern) = &*typed.pat else {
            return Err(Error::new_spanned(
                &typed.pat,
                "an argument needs a plain name, because the load gets a copy of it",
            ));
        };
        let (is_reference, inner) = match &*typed.ty {
            Type::Reference(reference) if reference.mutability.is_some() => {
                return Err(Error::new_spanned(
                    &typed.ty,
                    "an argument cannot be `&mut`: the load may outlive its caller, so it gets a copy",
                ));
            }
            Type::Reference(reference) => (true, &*reference.elem),
            other => (false, other),
        };
        let is_cache = matches!(inner, Type::Path(path)
            if path.path.segments.last().is_some_and(|last| last.ident == target.cache()));
        arguments.push(Argument { name: &pattern.ident, is_reference, is_cache });
    }
    Ok(arguments)
}

/// The expression of a reference to the larder or the fragment cache.
fn cache(
    options: &Options,
    arguments: &[Argument<'_>],
    is_method: bool,
    target: Target,
    function: &ImplItemFn,
) -> Result<TokenStream, Error> {
    if let Some(given) = &options.cache {
        return Ok(quote! { ::std::borrow::Borrow::borrow(&#given) });
    }
    if let Some(argument) = arguments.iter().find(|argument| argument.is_cache) {
        let name = argument.name;
        return Ok(if argument.is_reference {
            quote! { #name }
        } else {
            quote! { &#name }
        });
    }
    let field = format_ident!("{}", target.field());
    if is_method {
        return Ok(quote! { &self.#field });
    }
    let (cache, field) = (target.cache(), target.field());
    Err(Error::new_spanned(
        &function.sig.ident,
        format!("no argument has the type `&{cache}`; add one, or name it by `{field} = ..`"),
    ))
}

fn name(
    options: &Options,
    function: &ImplItemFn,
    arguments: &[Argument<'_>],
) -> Result<TokenStream, Error> {
    if let Some(key) = &options.key {
        let names: Vec<&Ident> = arguments.iter().map(|argument| argument.name).collect();
        let pieces = pieces(key, &names)?.into_iter().map(|piece| match piece {
            Piece::Text(text) => quote! { __name.text(#text); },
            Piece::Argument(name) => quote! { __name.member(&#name); },
        });
        return Ok(quote! {
            {
                let mut __name = ::larder::macros::KeyText::new();
                #(#pieces)*
                __name.finish()
            }
        });
    }
    let function_name = function.sig.ident.to_string();
    let types = function.sig.generics.params.iter().filter_map(|parameter| match parameter {
        GenericParam::Type(parameter) => {
            let ident = &parameter.ident;
            Some(quote! { __name.part(&::std::any::type_name::<#ident>()); })
        }
        GenericParam::Const(parameter) => {
            let ident = &parameter.ident;
            Some(quote! { __name.part(&#ident); })
        }
        GenericParam::Lifetime(_) => None,
    });
    let counted = arguments
        .iter()
        .filter(|argument| !argument.is_cache && !options.skip.contains(argument.name));
    let parts = counted.map(|argument| {
        let name = argument.name;
        quote! { __name.part(&#name); }
    });
    // Two types of one module may have methods of one name.
    let namespace = options.namespace.as_ref().map(|namespace| {
        quote! {
            __name.part(&::std::any::type_name::<Self>());
            __name.part(&#namespace);
        }
    });
    Ok(quote! {
        {
            let mut __name = ::larder::macros::KeyText::new();
            __name.part(&::std::module_path!());
            __name.part(&#function_name);
            #(#types)*
            #namespace
            #(#parts)*
            __name.finish()
        }
    })
}

fn policy(options: &Options, arguments: &[&Ident]) -> Result<TokenStream, Error> {
    let millis = |millis: u64| quote! { ::std::time::Duration::from_millis(#millis) };
    let mut policy = match (&options.policy, options.ttl) {
        (Some(policy), _) => quote! { ::larder::Policy::from(#policy) },
        (None, ttl) => {
            let ttl = millis(ttl.unwrap_or_default());
            let mut lifetime = quote! { ::larder::Lifetime::fresh_for(#ttl) };
            if let Some(window) = options.stale_while_revalidate.map(millis) {
                lifetime = quote! { #lifetime.stale_while_revalidate(#window) };
            }
            if let Some(window) = options.stale_if_error.map(millis) {
                lifetime = quote! { #lifetime.stale_if_error(#window) };
            }
            // As without the cache.
            quote! { ::larder::Policy::from(#lifetime).fill_timeout(::std::time::Duration::MAX) }
        }
    };
    if let Some(time) = options.negative_ttl.map(millis) {
        policy = quote! { #policy.negative_ttl(#time) };
    }
    if let Some(share) = &options.refresh_ahead {
        policy = quote! { #policy.refresh_ahead(#share) };
    }
    if options.is_shared {
        policy = quote! { #policy.shared() };
    }
    for tag in &options.tags {
        // The check names the arguments; the text itself is that of `format!`.
        let pieces = pieces(tag, arguments)?;
        let text: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Argument(name) => format!("{{{name}}}"),
            })
            .collect();
        policy = quote! { #policy.tag(::std::format!(#text)) };
    }
    Ok(policy)
}

fn results(function: &ImplItemFn) -> Result<Results<'_>, Error> {
    let ReturnType::Type(_, returned) = &function.sig.output else {
        return Err(Error::new_spanned(
            &function.sig.ident,
            "the function returns nothing that could be stored",
        ));
    };
    Ok(match (arguments_of(returned, "Result"), arguments_of(returned, "Option")) {
        (Some(value), _) => match arguments_of(value, "Option") {
            Some(value) => Results::FallibleOptional(value),
            None => Results::Fallible(value),
        },
        (None, Some(value)) => Results::Optional(value),
        (None, None) => Results::Plain(returned),
    })
}

/// The first type argument of a type with this name.
fn arguments_of<'a>(of: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(argument) => Some(argument),
        _ => None,
    })
}

/// The expression that asks larder.
fn answer(
    options: &Options,
    target: Target,
    results: &Results<'_>,
    cache: &TokenStream,
) -> TokenStream {
    if target == Target::Fragment {
        return match results {
            Results::Fallible(_) | Results::FallibleOptional(_) => quote! {
                ::larder::macros::fragment_result(#cache, __name, __policy, __run).await
            },
            _ => quote! { ::larder::macros::fragment(#cache, __name, __policy, __run).await },
        };
    }
    let (Results::Plain(value)
    | Results::Optional(value)
    | Results::Fallible(value)
    | Results::FallibleOptional(value)) = results;
    let value: Type = parse_quote!(#value);
    let values = match options.is_local {
        true => quote! { ::larder::values::Values::<#value>::local(#cache, __policy) },
        false => quote! { ::larder::Larder::values::<#value>(#cache, __policy) },
    };
    let call = match results {
        Results::Plain(_) => quote! { value },
        Results::Optional(_) => quote! { optional },
        Results::Fallible(_) => quote! { result },
        Results::FallibleOptional(_) => quote! { optional_result },
    };
    quote! { ::larder::macros::#call(&#values, __name, __run).await }
}
