package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const source = "k8s.io/api v0.34.1 and k8s.io/apimachinery v0.34.1 (Apache-2.0), by tests/tools/protobuf: go run . fields"

// special are the types with a JSON form of their own.
var special = map[reflect.Type]string{
	reflect.TypeOf(resource.Quantity{}):    "quantity",
	reflect.TypeOf(metav1.Time{}):          "time",
	reflect.TypeOf(metav1.MicroTime{}):     "microtime",
	reflect.TypeOf(intstr.IntOrString{}):   "int-or-string",
	reflect.TypeOf(metav1.FieldsV1{}):      "raw",
	reflect.TypeOf(runtime.RawExtension{}): "raw",
}

var marshaler = reflect.TypeOf((*json.Marshaler)(nil)).Elem()

// table collects messages: name -> fields.
type table map[string][]string

// name is such as core.v1.Pod: unique, and close to the protobuf package.
func name(t reflect.Type) string {
	parts := strings.Split(t.PkgPath(), "/")
	return strings.Join(append(parts[len(parts)-2:], t.Name()), ".")
}

func isBytes(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

// typeName is the table's word for a single value, and adds the message that it names.
func (found table) typeName(t reflect.Type) string {
	if word, ok := special[t]; ok {
		return word
	}
	if t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler) {
		panic(fmt.Sprintf("%s has a JSON form of its own: extend `special`", t))
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int32:
		return "int32"
	case reflect.Int64:
		return "int64"
	case reflect.Slice:
		if isBytes(t) {
			return "bytes"
		}
		// A named list as a map's value is a message with the one field `items`.
		if t.Elem().Kind() == reflect.String && t.Name() != "" {
			return "strings"
		}
	case reflect.Struct:
		found.add(t)
		return name(t)
	}
	panic(fmt.Sprintf("no word for %s", t))
}

// add makes the message's fields: [number, JSON name, type, flags]. Flags: l list, m map with string keys, i inlined
// into its parent's JSON, o left out of JSON when empty, p pointer (kept when empty).
func (found table) add(t reflect.Type) {
	if _, ok := found[name(t)]; ok {
		return
	}
	found[name(t)] = nil
	var fields []string
	for i := range t.NumField() {
		f := t.Field(i)
		jsonName, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		pb := strings.Split(f.Tag.Get("protobuf"), ",")
		if f.Tag.Get("protobuf") == "" {
			if f.Name != "TypeMeta" || jsonName != "" {
				panic(fmt.Sprintf("%s.%s has no protobuf form", t, f.Name))
			}
			continue // apiVersion and kind are in the envelope
		}
		if jsonName == "-" {
			panic(fmt.Sprintf("%s.%s has no JSON form", t, f.Name))
		}
		flags, ft := "", f.Type
		if ft.Kind() == reflect.Pointer {
			flags, ft = "p", ft.Elem()
		} else if strings.Contains(options, "omitempty") {
			flags = "o"
		}
		if jsonName == "" {
			if !f.Anonymous || flags == "p" {
				panic(fmt.Sprintf("%s.%s has no JSON name", t, f.Name))
			}
			flags = "i"
		}
		if _, ok := special[ft]; !ok {
			if ft.Kind() == reflect.Map {
				flags, ft = flags+"m", ft.Elem()
			} else if ft.Kind() == reflect.Slice && !isBytes(ft) {
				flags, ft = flags+"l", ft.Elem()
			}
		}
		number, err := strconv.Atoi(pb[1])
		check(err)
		text, err := json.Marshal([]any{number, jsonName, found.typeName(ft), flags})
		check(err)
		fields = append(fields, string(text))
	}
	found[name(t)] = fields
}

func writeFields(out io.Writer) {
	found := table{}
	fmt.Fprintf(out, "{\"source\":%q,\n\"roots\":{\n", source)
	for i, r := range roots {
		found.add(r.goType())
		fmt.Fprintf(out, "%q:%q%s\n", r.apiVersion+" "+r.kind, name(r.goType()), comma(i, len(roots)))
	}
	fmt.Fprint(out, "},\n\"messages\":{\n")
	names := make([]string, 0, len(found))
	for n := range found {
		names = append(names, n)
	}
	sort.Strings(names)
	for i, n := range names {
		fmt.Fprintf(out, "%q:[%s]%s\n", n, strings.Join(found[n], ","), comma(i, len(names)))
	}
	fmt.Fprint(out, "}}\n")
}

func comma(i, n int) string {
	if i == n-1 {
		return ""
	}
	return ","
}
