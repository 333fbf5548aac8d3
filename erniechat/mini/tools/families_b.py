"""Sorts of tools, second part: search, text, music, files, lists, home, orders."""

from erniechat.mini.skills.words import pseudo_word, word
from erniechat.mini.tools.family import Family, parameter
from erniechat.mini.tools.values import VALUES

FAMILIES: dict[str, Family] = {
    "search": Family(
        ["search", "web_search", "google", "search_web", "find", "lookup", "search_documents"],
        ["Search the web", "Find documents about a query", "Web search engine"],
        [
            parameter(
                "q", "text", "query q search_term text keywords", "Search query|What to look for"
            ),
            parameter(
                "n",
                "people",
                "limit max_results n count",
                "Number of results",
                "integer",
                optional=True,
            ),
        ],
        [
            "Search for {q}.",
            "Look up {q} on the web",
            "Find {q}",
            "search the web for {q}",
            "google {q}",
            "Find {n} results for {q}.",
            "search {q}, {n} results",
        ],
        [
            lambda rng, facts, given: {"results": [word(rng, facts), word(rng, facts)]},
            lambda rng, facts, given: {"hits": rng.randrange(0, 1000)},
            lambda rng, facts, given: {
                "results": [word(rng, facts), word(rng, facts), word(rng, facts)]
            },
        ],
        "Results for {q}",
    ),
    "translate": Family(
        ["translate", "translate_text", "translator", "translation"],
        ["Translate text into another language", "Translates words"],
        [
            parameter("text", "text", "text input phrase sentence", "Text to translate"),
            parameter(
                "lang", "language", "target_language language to target lang", "Target language"
            ),
        ],
        [
            "Translate '{text}' to {lang}.",
            "How do you say {text} in {lang}?",
            "translate {text} into {lang}",
            "{text} in {lang}",
        ],
        [
            lambda rng, facts, given: {"translation": pseudo_word(rng) + " " + pseudo_word(rng)},
            lambda rng, facts, given: {"text": pseudo_word(rng)},
        ],
        "{text} in {lang}",
    ),
    "define": Family(
        ["define", "dictionary", "define_word", "get_definition", "lookup_word"],
        ["Look a word up in a dictionary", "Definition of a word"],
        [parameter("w", "word", "word term query", "The word")],
        ["What does {w} mean?", "Define {w}.", "definition of {w}", "Look up the word {w}"],
        [lambda rng, facts, given: {"definition": " ".join(word(rng, facts) for _ in range(4))}],
        "{w}",
    ),
    "music": Family(
        ["play_music", "play_song", "play", "music_player", "start_song"],
        ["Play a song", "Plays music by title"],
        [parameter("song", "text", "song title track name", "Title of the song")],
        ["Play {song}.", "Play the song {song}", "I want to hear {song}", "put on {song}"],
        [
            lambda rng, facts, given: {"status": "playing"},
            lambda rng, facts, given: {"playing": given["song"]},
        ],
        "Song {song}",
    ),
    "table": Family(
        ["book_table", "reserve_table", "restaurant_booking", "make_reservation"],
        ["Book a table in a restaurant", "Restaurant reservations"],
        [
            parameter(
                "n", "people", "people guests party_size persons", "Number of people", "integer"
            ),
            parameter("t", "clock", "time at hour", "Time, HH:MM"),
            parameter("day", "day", "day date", "Day", optional=True),
        ],
        [
            "Book a table for {n} at {t}.",
            "Reserve a table at {t} for {n} people",
            "table for {n} people at {t}",
            "Book a table for {n} on {day} at {t}.",
            "I need a table for {n} at {t} {day}",
        ],
        [
            lambda rng, facts, given: {"status": "booked", "id": VALUES["id"](rng, facts)},
            lambda rng, facts, given: {"confirmed": True},
        ],
        "Table for {n}",
    ),
    "read": Family(
        ["read_file", "open_file", "cat", "load_file", "file_read", "readFile"],
        ["Read a file", "Returns the contents of a text file"],
        [parameter("path", "path", "path file filename file_path", "Path of the file")],
        [
            "Read {path}.",
            "Show me {path}",
            "What is in {path}?",
            "Open the file {path}",
            "print the contents of {path}",
            "cat {path}",
        ],
        [
            lambda rng, facts, given: {"content": VALUES["text"](rng, facts)},
            lambda rng, facts, given: {
                "text": VALUES["text"](rng, facts),
                "lines": rng.randrange(1, 50),
            },
        ],
        "File {path}",
    ),
    "list": Family(
        ["list_files", "ls", "list_directory", "dir", "list_folder", "listDir"],
        ["List the files in a folder", "Directory listing"],
        [parameter("dir", "folder", "path directory folder dir", "Folder")],
        [
            "List the files in {dir}.",
            "What files are in {dir}?",
            "ls {dir}",
            "show the folder {dir}",
            "Which files does {dir} contain?",
        ],
        [
            lambda rng, facts, given: {
                "files": [
                    VALUES["path"](rng, facts).split("/")[-1] for _ in range(rng.choice([1, 2, 3]))
                ]
            }
        ],
        "Files in {dir}",
    ),
    "todo": Family(
        ["add_todo", "create_task", "add_reminder", "new_note", "remember", "todo_add"],
        ["Add an item to the to-do list", "Creates a reminder"],
        [
            parameter("text", "text", "text task title item note", "What to do"),
            parameter("day", "day", "due date day when", "When it is due", optional=True),
        ],
        [
            "Add {text} to my list.",
            "Remind me to {text}",
            "New task: {text}",
            "Note: {text}",
            "Remind me to {text} on {day}.",
            "add a task {text} for {day}",
        ],
        [
            lambda rng, facts, given: {"status": "added"},
            lambda rng, facts, given: {"id": rng.randrange(1, 500)},
        ],
        "Task {text}",
    ),
    "distance": Family(
        ["distance", "get_distance", "route", "distance_between", "travel_distance"],
        ["Distance between two cities", "Get the distance by road"],
        [
            parameter("a", "city", "from origin start source", "Start"),
            parameter("b", "city", "to destination end target", "Destination"),
        ],
        [
            "How far is {a} from {b}?",
            "Distance from {a} to {b}",
            "How many km are there between {a} and {b}?",
            "How long is the way from {a} to {b}?",
        ],
        [
            lambda rng, facts, given: {"km": rng.randrange(5, 9000)},
            lambda rng, facts, given: {"distance": rng.randrange(5, 9000), "unit": "km"},
        ],
        "From {a} to {b}",
    ),
    "random": Family(
        ["random_number", "rand", "roll", "random_int", "dice"],
        ["Random number in a range", "Returns a random integer"],
        [
            parameter("a", "people", "min low start lower", "Smallest value", "integer"),
            parameter("b", "int", "max high end upper", "Largest value", "integer"),
        ],
        [
            "Give me a random number between {a} and {b}.",
            "Random number from {a} to {b}",
            "Pick a number between {a} and {b}",
        ],
        [
            lambda rng, facts, given: {"number": rng.randrange(1, 1000)},
            lambda rng, facts, given: {"value": rng.randrange(1, 1000)},
        ],
        "Random number",
    ),
    "light": Family(
        ["set_light", "light", "switch_light", "lights", "light_control"],
        ["Switch the light in a room", "Controls lamps"],
        [
            parameter("room", "room", "room location place", "Room"),
            parameter("state", "state", "state status power value", "on or off", enum=True),
        ],
        [
            "Turn {state} the light in the {room}.",
            "Switch the {room} light {state}",
            "{room} light {state}",
            "Turn the lights in the {room} {state}",
        ],
        [
            lambda rng, facts, given: {"status": "ok"},
            lambda rng, facts, given: {"light": given["state"]},
        ],
        "Light in the {room}",
    ),
    "heating": Family(
        ["set_temperature", "thermostat", "set_heating", "heating"],
        ["Set the temperature of a room", "Controls the thermostat"],
        [
            parameter("room", "room", "room zone", "Room"),
            parameter(
                "n", "degrees", "degrees temperature value target", "Degrees Celsius", "integer"
            ),
        ],
        [
            "Set the {room} to {n} degrees.",
            "Heat the {room} to {n} degrees",
            "{room} {n} degrees",
            "Make the {room} {n} degrees warm",
        ],
        [lambda rng, facts, given: {"status": "ok"}, lambda rng, facts, given: {"set": given["n"]}],
        "Heating in the {room}",
    ),
    "news": Family(
        ["get_news", "news", "headlines", "news_search", "latest_news"],
        ["Latest news on a topic", "Get headlines"],
        [parameter("topic", "word", "topic subject category query", "Topic")],
        [
            "What's the news about {topic}?",
            "News on {topic}",
            "Show me headlines about {topic}",
            "latest {topic} news",
        ],
        [
            lambda rng, facts, given: {"headlines": [VALUES["text"](rng, facts)]},
            lambda rng, facts, given: {"headline": VALUES["text"](rng, facts)},
        ],
        "News on {topic}",
    ),
    "order": Family(
        ["order_item", "buy", "place_order", "add_to_cart", "shop"],
        ["Order a product", "Puts items into the shopping cart"],
        [
            parameter("n", "people", "quantity amount count number", "How many", "integer"),
            parameter("item", "word", "item product name article", "Product"),
        ],
        [
            "Order {n} {item}.",
            "Buy {n} {item}",
            "Add {n} {item} to my cart",
            "I want to buy {n} {item}",
        ],
        [
            lambda rng, facts, given: {"order": VALUES["id"](rng, facts)},
            lambda rng, facts, given: {"status": "ordered", "price": rng.randrange(1, 200)},
        ],
        "Order of {n} {item}",
    ),
    "track": Family(
        ["track_package", "track_order", "get_order_status", "order_status", "parcel"],
        ["Where is a parcel?", "Status of an order"],
        [parameter("id", "id", "id order_id number tracking_number code", "Order number")],
        [
            "Where is my order {id}?",
            "Track {id}",
            "Status of order {id}?",
            "What about my parcel {id}?",
        ],
        [
            lambda rng, facts, given: {
                "status": rng.choice(["shipped", "delivered", "delayed", "packed"])
            },
            lambda rng, facts, given: {"status": "shipped", "city": VALUES["city"](rng, facts)},
        ],
        "Order {id}",
    ),
}
