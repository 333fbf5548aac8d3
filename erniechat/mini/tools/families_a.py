"""Sorts of tools, first part: weather, sums, money, messages, clocks."""

from erniechat.mini.skills.dates import DAYS
from erniechat.mini.tools.family import Family, calculate, parameter
from erniechat.mini.tools.values import CONDITIONS, CURRENCIES, VALUES

FAMILIES: dict[str, Family] = {
    "weather": Family(
        [
            "get_weather",
            "weather",
            "current_weather",
            "getCurrentWeather",
            "fetch_weather",
            "weather_lookup",
            "get_current_weather",
            "lookup_weather",
            "get_current_temperature",
        ],
        [
            "Get the current weather for a city",
            "Returns the weather conditions at a location.",
            "Current weather",
            "Look up the weather",
            "Get current temperature for a given location.",
        ],
        [
            parameter(
                "city",
                "city",
                "location city place q city_name",
                "City name|The city, e.g. Paris|Name of the place",
            ),
            parameter(
                "unit", "unit", "unit units scale", "Temperature unit", enum=True, optional=True
            ),
        ],
        [
            "What's the weather in {city}?",
            "How is the weather in {city} today?",
            "weather in {city}",
            "Is it raining in {city}?",
            "What is the temperature in {city}?",
            "Do I need an umbrella in {city}?",
            "How warm is it in {city}?",
            "tell me the weather for {city}",
            "How 's the weather in {city} today?",
            "What's the weather in {city} in {unit}?",
            "temperature in {city} in {unit} please",
            "Check the weather in {city}",
        ],
        [
            lambda rng, facts, given: {
                "temperature": rng.randrange(-10, 40),
                "condition": rng.choice(CONDITIONS),
            },
            lambda rng, facts, given: {"temp": rng.randrange(-10, 40)},
            lambda rng, facts, given: {
                "weather": rng.choice(CONDITIONS),
                "humidity": rng.randrange(20, 100),
            },
            lambda rng, facts, given: {"t": str(rng.randrange(-10, 40))},
        ],
        "Weather in {city}",
    ),
    "time": Family(
        [
            "get_time",
            "current_time",
            "get_current_time",
            "clock",
            "world_clock",
            "time_in",
            "now",
            "getTime",
        ],
        [
            "Get the current time in a city",
            "Returns the local time of a place",
            "Current time for a timezone or city",
        ],
        [
            parameter(
                "city", "city", "city location timezone place zone", "City|Name of the city|Place"
            )
        ],
        [
            "What time is it in {city}?",
            "time in {city}",
            "Tell me the time in {city}.",
            "What is the local time in {city}?",
            "How late is it in {city}?",
            "current time in {city}?",
        ],
        [
            lambda rng, facts, given: {"time": VALUES["clock"](rng, facts)},
            lambda rng, facts, given: {
                "time": VALUES["clock"](rng, facts),
                "day": rng.choice(DAYS),
            },
        ],
        "Time in {city}",
    ),
    "calculator": Family(
        ["calculator", "calculate", "calc", "evaluate", "eval_expression", "math", "compute"],
        [
            "Evaluate an arithmetic expression",
            "A calculator.",
            "Calculates the value of an expression",
            "Do maths",
        ],
        [
            parameter(
                "expr",
                "expr",
                "expression expr input formula",
                "The expression, e.g. 2 + 3|Arithmetic expression",
            )
        ],
        [
            "What is {expr}?",
            "Calculate {expr}",
            "{expr}",
            "Compute {expr}.",
            "How much is {expr}?",
            "Use the calculator: {expr}",
            "what's {expr}",
            "Please work out {expr}",
        ],
        [
            lambda rng, facts, given: {"result": calculate(given["expr"])},
            lambda rng, facts, given: {"value": calculate(given["expr"])},
        ],
        "{expr}",
    ),
    "add": Family(
        ["add", "add_numbers", "sum", "plus", "addition", "add_two_numbers"],
        ["Add two numbers", "Returns the sum of a and b", "Adds numbers"],
        [
            parameter("a", "int", "a x first num1", "First number", "integer"),
            parameter("b", "int", "b y second num2", "Second number", "integer"),
        ],
        [
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "{a} + {b}",
            "{a} plus {b}",
            "sum of {a} and {b}",
        ],
        [
            lambda rng, facts, given: {"result": given["a"] + given["b"]},
            lambda rng, facts, given: {"sum": given["a"] + given["b"]},
        ],
        "{a} + {b}",
    ),
    "exchange": Family(
        ["convert_currency", "currency_converter", "exchange", "convert_money", "currencyConvert"],
        ["Convert an amount between currencies", "Currency conversion"],
        [
            parameter("amount", "int", "amount value sum", "Amount of money", "number"),
            parameter("a", "currency", "from from_currency source base", "Source currency"),
            parameter("b", "currency", "to to_currency target dest", "Target currency"),
        ],
        [
            "Convert {amount} {a} to {b}.",
            "How much is {amount} {a} in {b}?",
            "{amount} {a} in {b}",
            "Change {amount} {a} into {b}",
            "What are {amount} {a} worth in {b}?",
        ],
        [
            lambda rng, facts, given: {
                "amount": round(rng.uniform(1, 900), 2),
                "currency": given["b"],
            },
            lambda rng, facts, given: {"result": round(rng.uniform(1, 900), 2)},
        ],
        "{amount} {a} in {b}",
    ),
    "stock": Family(
        ["get_stock_price", "stock_price", "stock_quote", "quote", "get_quote", "share_price"],
        ["Get the price of a stock", "Latest share price of a company"],
        [parameter("company", "company", "company symbol ticker name", "Company name|Stock name")],
        [
            "What is the stock price of {company}?",
            "How much is a share of {company}?",
            "{company} stock price",
            "price of {company} shares",
            "Get me the {company} quote.",
        ],
        [
            lambda rng, facts, given: {"price": round(rng.uniform(5, 900), 2)},
            lambda rng, facts, given: {
                "price": rng.randrange(5, 900),
                "currency": rng.choice(CURRENCIES),
            },
        ],
        "Stock of {company}",
    ),
    "mail": Family(
        ["send_email", "email", "send_mail", "mail", "compose_email", "sendEmail"],
        ["Send an e-mail", "Sends an email message to somebody"],
        [
            parameter("to", "email", "to recipient address email", "Address of the recipient"),
            parameter("text", "text", "body text message content", "Text of the message"),
        ],
        [
            "Send an email to {to} saying {text}.",
            "Email {to}: {text}",
            "Write to {to} that {text}",
            "Mail {to} the text '{text}'",
            "send {to} an e-mail: {text}",
        ],
        [
            lambda rng, facts, given: {"status": rng.choice(["sent", "ok", "queued"])},
            lambda rng, facts, given: {"sent": True},
        ],
        "E-mail to {to}",
    ),
    "message": Family(
        ["send_message", "text_contact", "send_sms", "message", "notify"],
        ["Send a text message to a contact", "Sends a message to a person"],
        [
            parameter("who", "person", "contact to name recipient person", "Name of the contact"),
            parameter("text", "text", "message text content body", "The message"),
        ],
        [
            "Tell {who}: {text}",
            "Send {who} a message: {text}",
            "Text {who} that {text}",
            "message {who}: {text}",
            "Let {who} know: {text}",
        ],
        [
            lambda rng, facts, given: {"status": rng.choice(["sent", "delivered"])},
            lambda rng, facts, given: {"ok": True},
        ],
        "Message to {who}",
    ),
    "timer": Family(
        ["set_timer", "timer", "start_timer", "countdown", "startTimer"],
        ["Start a timer", "Sets a countdown timer in minutes"],
        [parameter("n", "minutes", "minutes duration length mins", "Minutes", "integer")],
        [
            "Set a timer for {n} minutes.",
            "Timer {n} minutes",
            "start a {n} minute timer",
            "Remind me in {n} minutes",
            "Count down {n} minutes.",
        ],
        [
            lambda rng, facts, given: {"status": "started"},
            lambda rng, facts, given: {"timer": f"{given['n']} min"},
        ],
        "Timer",
    ),
    "alarm": Family(
        ["set_alarm", "alarm", "create_alarm", "wake_up"],
        ["Set an alarm clock", "Creates an alarm at a given time"],
        [parameter("t", "clock", "time at when", "Time of day, HH:MM")],
        ["Wake me at {t}.", "Set an alarm for {t}.", "alarm at {t}", "I need an alarm at {t}"],
        [
            lambda rng, facts, given: {"status": "set"},
            lambda rng, facts, given: {"alarm": given["t"]},
        ],
        "Alarm",
    ),
}
