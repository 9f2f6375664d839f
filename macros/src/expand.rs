//! Writes the built struct and the implementations.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{parse_quote, parse_quote_spanned, GenericParam};

use crate::attributes::Forward;
use crate::describe::describe;
use crate::parse::{Field, Network};
use crate::wiring::{Part, Wiring};

/// dfdx implements its visitors for tuples of at most this many fields.
const TUPLE: usize = 6;

/// Everything that stands in for the annotated struct.
pub fn expand(network: &Network) -> TokenStream {
    let config = &network.item;
    let built = Built::new(network);
    let mut parts = vec![
        built.definition(),
        built.tensor_collection(),
        built.layer(),
        build_on_device(network, &built),
        config_layer(network),
    ];
    match &network.forward {
        Forward::Sequence => parts.extend([
            built.forward(&format_ident!("Module"), &format_ident!("try_forward"), false),
            built.forward(&format_ident!("ModuleMut"), &format_ident!("try_forward_mut"), true),
        ]),
        Forward::Unknown => parts.push(built.alias()),
        Forward::Wired(wiring) => parts.extend([built.alias(), no_parameters(wiring)]),
    }
    quote! {
        #[allow(dead_code)]
        #config
        #(#parts)*
    }
}

/// The struct that holds the built layers: one type parameter for each field,
/// as dfdx's tuples have, so that changing device or dtype composes.
struct Built<'a> {
    network: &'a Network,
    ident: Ident,
    /// `F0`, `F1`, ...: the types of the fields.
    types: Vec<Ident>,
}

impl<'a> Built<'a> {
    fn new(network: &'a Network) -> Self {
        let ident = format_ident!("Built{}", network.ident());
        let types = (0..network.fields.len()).map(|i| format_ident!("F{i}")).collect();
        Self { network, ident, types }
    }

    fn definition(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let visibility = &network.item.vis;
        let docs = format!(
            "[`{}`] built on a device. `lopt::network::Built` names its type for a dtype and a \
             device.",
            network.ident()
        );
        let fields = network.fields.iter().zip(types).map(|(field, ty)| {
            let Field { attributes, visibility, ident, .. } = field;
            let kept = attributes.iter().filter(|attribute| {
                ["doc", "deprecated", "allow"].iter().any(|name| attribute.path().is_ident(name))
            });
            quote!(#(#kept)* #visibility #ident: #ty)
        });
        quote! {
            #[doc = #docs]
            #[allow(missing_docs)]
            #[derive(Clone, Debug)]
            #visibility struct #ident<#(#types),*> { #(#fields),* }
        }
    }

    /// The built struct for a dtype and a device, to write in the header of an
    /// `impl`, where `lopt::network::Built` cannot stand.
    fn alias(&self) -> TokenStream {
        let Self { network, ident, .. } = self;
        let taken = network.words();
        let (element, device) = (fresh("E", &taken), fresh("D", &taken));
        let parameters = network.generics().params.iter().map(|parameter| match parameter {
            GenericParam::Const(constant) => {
                let (ident, ty) = (&constant.ident, &constant.ty);
                quote!(const #ident: #ty)
            }
            GenericParam::Type(ty) => {
                let ident = &ty.ident;
                quote!(#ident)
            }
            GenericParam::Lifetime(lifetime) => quote!(#lifetime),
        });
        let layers = built_types(network, &element, &device);
        let visibility = &network.item.vis;
        let alias = format_ident!("{}On", network.ident());
        let docs = format!(
            "[`{ident}`] for a dtype and a device: the type to implement dfdx's `Module` for."
        );
        quote! {
            #[doc = #docs]
            #[allow(dead_code)]
            #visibility type #alias<#(#parameters,)* #element, #device> = #ident<#(#layers),*>;
        }
    }

    fn tensor_collection(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let bounds = network.fields.iter().zip(types).map(|(field, ty)| {
            let role = if field.is_parameter() { "BuiltTensor" } else { "TensorCollection" };
            let role = format_ident!("{role}");
            quote!(#ty: ::lopt::__private::#role<E, D>)
        });
        let visits = nest(network.fields.iter().map(visit).collect());
        let values: Vec<_> =
            (0..types.len()).map(|i| Ident::new(&format!("f{i}"), Span::mixed_site())).collect();
        let pattern = nest(values.iter().map(|value| quote!(#value)).collect());
        let fields = network.fields.iter().zip(types.iter().zip(&values));
        let fields = fields.map(|(field, (ty, value))| {
            let name = &field.ident;
            if field.is_parameter() {
                quote!(#name: <#ty as ::lopt::__private::BuiltTensor<E, D>>::new(#value))
            } else {
                quote!(#name: #value)
            }
        });
        quote! {
            #[automatically_derived]
            impl<
                E: ::lopt::__private::Dtype,
                D: ::lopt::__private::Device<E>,
                #(#bounds),*
            > ::lopt::__private::TensorCollection<E, D> for #ident<#(#types),*> {
                type To<E2: ::lopt::__private::Dtype, D2: ::lopt::__private::Device<E2>> =
                    #ident<#(#types::To<E2, D2>),*>;

                fn iter_tensors<V: ::lopt::__private::ModuleVisitor<Self, E, D>>(
                    visitor: &mut V,
                ) -> ::lopt::__private::Result<
                    ::lopt::__private::Option<Self::To<V::E2, V::D2>>,
                    V::Err,
                > {
                    ::lopt::__private::ModuleVisitor::visit_fields(
                        visitor,
                        #visits,
                        |#pattern| #ident { #(#fields),* },
                    )
                }
            }
        }
    }

    /// The layers one after the other. `X0`, `X1`, ... are what each one hands
    /// to the next.
    fn forward(&self, module: &Ident, method: &Ident, mutable: bool) -> TokenStream {
        let Self { network, ident, types } = self;
        let (this, borrow) =
            if mutable { (quote!(&mut self), quote!(&mut)) } else { (quote!(&self), quote!(&)) };
        let value = Ident::new("value", Span::mixed_site());
        let mut passed = vec![format_ident!("X0")];
        let mut bounds = Vec::new();
        let mut steps = Vec::new();
        for (field, ty) in network.fields.iter().zip(types) {
            let from = passed[passed.len() - 1].clone();
            let name = &field.ident;
            let apply = quote!(::lopt::__private::#module::#method(#borrow self.#name, #value)?);
            let to = format_ident!("X{}", passed.len());
            bounds.push(quote_spanned! {at(&field.ty)=>
                #ty: ::lopt::__private::#module<#from, Output = #to, Error = X>
            });
            if field.options.residual.is_some() {
                bounds.push(quote_spanned! {at(&field.ty)=>
                    #from: ::lopt::__private::WithEmptyTape,
                    #to: ::lopt::__private::ResidualOutput<#from, Err = X>
                });
                let skip = Ident::new("skip", Span::mixed_site());
                steps.push(quote! {
                    let #skip = #value;
                    let #value = ::lopt::__private::WithEmptyTape::with_empty_tape(&#skip);
                    let #value = ::lopt::__private::ResidualOutput::add(#apply, #skip)?;
                });
            } else {
                steps.push(quote!(let #value = #apply;));
            }
            passed.push(to);
        }
        let (input, output) = (&passed[0], &passed[passed.len() - 1]);
        quote! {
            #[automatically_derived]
            impl<#(#passed,)* X: ::lopt::__private::Debug, #(#types),*>
                ::lopt::__private::#module<#input> for #ident<#(#types),*>
            where
                #(#bounds),*
            {
                type Output = #output;
                type Error = X;

                fn #method(
                    #this,
                    #value: #input,
                ) -> ::lopt::__private::Result<Self::Output, Self::Error> {
                    #(#steps)*
                    ::lopt::__private::Result::Ok(#value)
                }
            }
        }
    }

    fn layer(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let bounds = network.fields.iter().zip(types).map(|(field, ty)| {
            let role = layer_trait(field);
            quote!(#ty: ::lopt::__private::#role)
        });
        let body = layer_body(network, types.iter().map(|ty| quote!(#ty)).collect());
        quote! {
            #[automatically_derived]
            impl<#(#bounds),*> ::lopt::__private::Layer for #ident<#(#types),*> {
                #body
            }
        }
    }
}

/// How dfdx's visitors come to a field.
fn visit(field: &Field) -> TokenStream {
    let Field { name, ident, options, .. } = field;
    let frozen = options.frozen.is_some();
    let visit = if field.is_parameter() {
        let bits = options.init.map_or(0.0, |(_, value)| value).to_bits();
        quote! {
            Self::tensor(
                #name,
                |built| ::lopt::__private::BuiltTensor::get(&built.#ident),
                |built| ::lopt::__private::BuiltTensor::get_mut(&mut built.#ident),
                ::lopt::__private::filled::<#bits, _, _, _>(#frozen),
            )
        }
    } else {
        let get = quote!(#name, |built| &built.#ident, |built| &mut built.#ident);
        match frozen {
            true => quote!(::lopt::__private::FrozenField::new::<Self>(#get)),
            false => quote!(Self::module(#get)),
        }
    };
    match options.skip {
        Some(_) => quote!(::lopt::__private::SkippedField(#visit)),
        None => visit,
    }
}

/// What the type of a field implements.
fn layer_trait(field: &Field) -> Ident {
    Ident::new(if field.is_parameter() { "BareTensor" } else { "Layer" }, at(&field.ty))
}

/// What dfdx builds from the type of each field.
fn built_types<'a>(
    network: &'a Network,
    element: &'a Ident,
    device: &'a Ident,
) -> impl Iterator<Item = TokenStream> + 'a {
    network.fields.iter().map(move |Field { ty, .. }| {
        quote_spanned! {at(ty)=>
            <#ty as ::lopt::__private::BuildOnDevice<#device, #element>>::Built
        }
    })
}

fn build_on_device(network: &Network, built: &Built) -> TokenStream {
    let taken = network.words();
    let element = fresh("E", &taken);
    let device = fresh("D", &taken);
    let mut generics = network.generics().clone();
    generics.params.push(parse_quote!(#element: ::lopt::__private::Dtype));
    generics.params.push(parse_quote!(#device: ::lopt::__private::Device<#element>));
    let clause = generics.make_where_clause();
    for field in &network.fields {
        let ty = &field.ty;
        clause.predicates.push(parse_quote_spanned! {at(ty)=>
            #ty: ::lopt::__private::BuildOnDevice<#device, #element>
        });
        if field.is_parameter() {
            clause.predicates.push(parse_quote_spanned! {at(ty)=>
                <#ty as ::lopt::__private::BuildOnDevice<#device, #element>>::Built:
                    ::lopt::__private::BuiltTensor<#element, #device>
            });
        }
    }
    let layers = built_types(network, &element, &device);
    let (parameters, _, clause) = generics.split_for_impl();
    let (_, arguments, _) = network.generics().split_for_impl();
    let (config, built) = (network.ident(), &built.ident);
    quote! {
        #[automatically_derived]
        impl #parameters ::lopt::__private::BuildOnDevice<#device, #element>
            for #config #arguments
        #clause
        {
            type Built = #built<#(#layers),*>;
        }
    }
}

fn config_layer(network: &Network) -> TokenStream {
    let mut generics = network.generics().clone();
    let clause = generics.make_where_clause();
    for field in &network.fields {
        // A bound that depends on no parameter would be checked here, apart
        // from the use below, and an error would be reported twice.
        let ty = &field.ty;
        if network.mentions_parameter(ty) {
            let role = layer_trait(field);
            clause.predicates.push(parse_quote_spanned!(at(ty)=> #ty: ::lopt::__private::#role));
        }
    }
    let types = network.fields.iter().map(|Field { ty, .. }| quote_spanned!(at(ty)=> #ty));
    let body = layer_body(network, types.collect());
    let (parameters, arguments, clause) = generics.split_for_impl();
    let config = network.ident();
    quote! {
        #[automatically_derived]
        impl #parameters ::lopt::__private::Layer for #config #arguments #clause {
            #body
        }
    }
}

/// Constant and description, from the types of the fields.
fn layer_body(network: &Network, types: Vec<TokenStream>) -> TokenStream {
    let flat = network.fields.iter().zip(&types).filter(|(field, _)| field.is_flat());
    let counts = flat.map(|(field, ty)| {
        let role = layer_trait(field);
        quote_spanned!(at(ty)=> <#ty as ::lopt::__private::#role>::PARAMETERS)
    });
    let description = describe(network, &types);
    quote! {
        const PARAMETERS: usize = 0 #(+ #counts)*;

        fn describe(layout: &mut ::lopt::__private::LayoutBuilder) {
            #description
        }
    }
}

/// Checks that the layers that a wiring names by their types have no
/// parameters, which would be in no field.
fn no_parameters(wiring: &Wiring) -> TokenStream {
    const PROBLEM: &str = "a type in `forward(..)` stands for a function without parameters: make \
                           the layer a field, and name that";
    let layers = wiring.parts().into_iter().filter_map(|part| match part {
        Part::Layer(ty) => Some(ty),
        _ => None,
    });
    let checks = layers.map(|ty| {
        quote_spanned! {at(ty)=>
            const _: () =
                ::core::assert!(<#ty as ::lopt::__private::Layer>::PARAMETERS == 0, #PROBLEM);
        }
    });
    checks.collect()
}

/// Where errors about a type are reported; names mean there what they mean in
/// the rest of the expansion.
pub fn at(ty: &impl Spanned) -> Span {
    Span::call_site().located_at(ty.span())
}

/// Tuples of tuples of at most [`TUPLE`] items, in order.
fn nest(mut items: Vec<TokenStream>) -> TokenStream {
    while items.len() > TUPLE {
        items = items.chunks(TUPLE).map(|chunk| quote!((#(#chunk,)*))).collect();
    }
    quote!((#(#items,)*))
}

/// A parameter name that the annotated struct does not use.
fn fresh(name: &str, taken: &HashSet<String>) -> Ident {
    let mut name = name.to_owned();
    while taken.contains(&name) {
        name.push('_');
    }
    Ident::new(&name, Span::call_site())
}
